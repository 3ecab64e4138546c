from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
from safetensors.torch import save_file

from tests.e2e.nets import TOKENS, WIDTH, Branches
from tests.e2e.server_process import ServerProcess, running

BRANCHES_TOML = f"""
source = "python:tests.e2e.nets:Branches"
batch_sizes = [1, 4]

[[inputs]]
name = "x"
dtype = "float32"
shape = [{WIDTH}]

[[inputs]]
name = "tokens"
dtype = "int64"
shape = [3]
range = [0, {TOKENS}]

[batching]
max_rows = 16
"""
SMALL_TOML = """
source = "python:tests.e2e.nets:Small"
batch_sizes = [1, 4]
policy = "sequential"

[[inputs]]
name = "x"
dtype = "float32"
shape = [4]

[batching]
max_queue_rows = 4096
"""


def write_model(models: Path, name: str, toml: str) -> Path:
    folder = models / name
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(toml)
    return folder


@pytest.fixture(scope="session")
def branches() -> Branches:
    """The eager model with the weights that the server loads."""
    torch.manual_seed(1)
    return Branches().eval()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, branches: Branches) -> Iterator[ServerProcess]:
    """One server for all tests that leave it as it was: ``branches``, and ``broken``, which cannot be loaded."""
    models = tmp_path_factory.mktemp("e2e") / "models"
    save_file(branches.state_dict(), write_model(models, "branches", BRANCHES_TOML) / "weights.safetensors")
    write_model(models, "broken", BRANCHES_TOML.replace("batch_sizes", "bach_sizes"))
    with running(models) as process:
        yield process


@pytest.fixture(scope="session")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as connected:
        yield connected


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of one model that loads quickly: relu(x) + 1."""
    models = tmp_path / "models"
    write_model(models, "small", SMALL_TOML)
    return models
