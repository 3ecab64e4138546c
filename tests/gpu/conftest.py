from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from opara_server.engine.device import Device, open_device

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs a GPU; without one it is skipped, by name."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"))


@pytest.fixture
def device() -> Iterator[Device]:
    opened = open_device("cuda")
    with opened.bind(), opened.tuning():
        yield opened
    opened.close()
