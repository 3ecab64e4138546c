"""The suite's models as sources for the server: ``source = "python:bench.served:googlenet"``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from bench.models import MODELS


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """What builds the model of that name."""
    if name not in MODELS:
        raise AttributeError(name)
    return partial(_build, name)


def _build(name: str) -> nn.Module:
    """Always with the same random weights."""
    torch.manual_seed(0)
    return MODELS[name].build()


def model_toml(name: str, dtype: str, batches: list[int], device: str, budget_s: float) -> str:
    """The model.toml of a model of the suite."""
    bench = MODELS[name]
    lines = [
        f'source = "python:bench.served:{name}"',
        f"batch_sizes = {batches}",
        f"tuning_budget_s = {budget_s}",
        f'dtype = "{dtype}"',
        f'device = "{device}"',
        f"channels_last = {str(bench.channels_last).lower()}",
    ]
    for spec in bench.inputs(dtype):
        lines += ["[[inputs]]", f'name = "{spec.name}"', f'dtype = "{spec.dtype}"', f"shape = {list(spec.shape)}"]
        if spec.high is not None:
            lines.append(f"range = [{float(spec.low or 0)}, {float(spec.high)}]")
    return "\n".join(lines) + "\n"
