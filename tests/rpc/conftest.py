from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.rpc.served import Served, serve, write_model


@pytest.fixture(params=["aio", "cq"])
async def served(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """On either transport: what holds on one holds on the other."""
    async with serve(write_model(tmp_path / "models"), transport=request.param) as running:
        yield running
