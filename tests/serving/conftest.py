from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.fakes import Core


@pytest.fixture
def core() -> Iterator[Core]:
    core = Core()
    yield core
    core.executor.stop(5.0)
