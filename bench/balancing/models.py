"""What the servers serve."""

from __future__ import annotations

import time

from torch import nn

from bench.serving.models.modules import Identity

LOADING_S = 1.5


def slow_to_load() -> nn.Module:
    """An identity that takes its time, as models do that are read, captured and verified."""
    time.sleep(LOADING_S)
    return Identity()
