"""A CPU device that many streams can share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from opara_server.engine.device_cpu import CpuDevice


@pytest.fixture
def device() -> Iterator[CpuDevice]:
    opened = CpuDevice(threads=8)
    with opened.bind():
        yield opened
    opened.close()
