from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.rpc.served import Served, serve, write_model


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(write_model(tmp_path / "models")) as running:
        yield running
