from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from opara_client import AsyncOparaClient, OparaClient
from tests.client.fake_server import PATIENCE_S, FakeServer, default_models


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(default_models()) as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[OparaClient]:
    with OparaClient(server.target, timeout=PATIENCE_S) as connected:
        yield connected


@pytest.fixture
async def aclient(server: FakeServer) -> AsyncIterator[AsyncOparaClient]:
    async with AsyncOparaClient(server.target, timeout=PATIENCE_S) as connected:
        yield connected
