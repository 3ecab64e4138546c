from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from opara_server.rpc.transports import AIO, CQ
from tests.certificates import Authority
from tests.rpc.served import PATIENCE_S, WORKER, Served, serve, write_model


@pytest.fixture(params=[AIO, CQ])
def transport(request: pytest.FixtureRequest) -> str:
    """Each: what holds on one holds on the other."""
    name: str = request.param
    return name


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return write_model(tmp_path / "models")


@pytest.fixture(params=[AIO, CQ, WORKER])
async def served(models: Path, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """By each transport, and by a worker. Its grace is longer than any test waits: what has not ended shows."""
    async with serve(models, transport=request.param, grace_s=10 * PATIENCE_S) as running:
        yield running


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One that nobody was told of."""
    return Authority(tmp_path_factory.mktemp("stranger"))
