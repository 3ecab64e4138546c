"""Models that are measured in a moment."""

from __future__ import annotations

from bench.models import BenchModel
from tests.engine.models import IMAGE, ROW, Branches, ConvBranches, Function

BRANCHES = BenchModel(lambda: Branches().eval(), lambda _dtype: ROW)
CONVOLUTIONS = BenchModel(lambda: ConvBranches().eval(), lambda _dtype: IMAGE, channels_last=True)


def _crash(*_inputs: object) -> object:
    raise SystemExit(7)


CRASHING = BenchModel(lambda: Function(_crash).eval(), lambda _dtype: ROW)
