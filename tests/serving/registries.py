"""A registry over a folder of models that are made up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from opara_server.config import ServerConfig
from opara_server.model_config import ModelConfig
from opara_server.observe.metrics import Metrics
from opara_server.serving.executor import Executor
from opara_server.serving.registry import Compile, Progress, Registry
from tests.serving.fakes import PATIENCE_S, FakeCompiled

MODEL = """
source = "python:tests.serving.models:Scale"
batch_sizes = [1, 4]
[[inputs]]
name = "x"
dtype = "float32"
shape = [2]
"""


class Server:
    """A registry over a folder, with its executor."""

    def __init__(self, directory: Path, compile_with: Compile | None, **options: object) -> None:
        self.executor, self.metrics = Executor(), Metrics()
        config = ServerConfig.of(models=directory, cache_dir=directory / "cache", **options)
        self.registry = Registry(config, self.executor, self.metrics, compile_with)
        self.progress: list[tuple[str, float]] = []

    def load(self, progress: Progress | None = None) -> None:
        report = progress or (lambda what, share: self.progress.append((what, share)))
        self.executor.run(lambda: self.registry.load_all(report)).result(PATIENCE_S)

    def ready(self, model: str) -> float | None:
        return self.metrics.registry.get_sample_value("opara_model_ready", {"model": model})


@contextmanager
def serving(directory: Path, compile_with: Compile | None, **options: object) -> Iterator[Server]:
    server = Server(directory, compile_with, **options)
    server.executor.start()
    try:
        yield server
    finally:
        server.executor.stop(5.0)


def repository(directory: Path, **models: str) -> Path:
    for name, text in models.items():
        (directory / name).mkdir()
        (directory / name / "model.toml").write_text(text)
    return directory


class Compiler:
    """Makes fakes; ``failing`` names fail with ``error``."""

    def __init__(self, error: BaseException | None = None, failing: str = "") -> None:
        self.error, self.failing = error, failing
        self.made: dict[str, FakeCompiled] = {}
        self.configs: dict[str, ModelConfig] = {}

    def __call__(self, name: str, module: torch.nn.Module, config: ModelConfig, progress: Progress) -> FakeCompiled:
        assert not module.training
        progress("measuring", 0.5)
        self.configs[name] = config
        if self.error is not None and name == self.failing:
            raise self.error
        self.made[name] = FakeCompiled(name, config.batch_sizes)
        return self.made[name]
