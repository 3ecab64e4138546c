"""What the suite needs to know of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from opara_server.engine.spec import TensorSpec

Inputs = Callable[[str], tuple[TensorSpec, ...]]


@dataclass(frozen=True)
class BenchModel:
    """``build`` makes the module in eval mode, float32, on the CPU; ``inputs``: one row's, for the dtype it runs in;
    ``package``: what ``build`` imports and not everybody has."""

    build: Callable[[], nn.Module]
    inputs: Inputs
    channels_last: bool = False
    package: str = ""


def image(side: int) -> Inputs:
    """One square RGB image."""
    return lambda dtype: (TensorSpec("image", dtype, (3, side, side)),)


def ids(high: int = 10_000, **lengths: int) -> Inputs:
    """Per name a vector of that many ids below ``high``."""
    return lambda _dtype: tuple(TensorSpec(name, "int64", (length,), 0, high) for name, length in lengths.items())
