"""Random weights that still compute something.

Fresh modules have batch norms that normalise nothing (mean 0, variance 1). In GoogLeNet or Inception-v3 the image then
fades away layer by layer, the output depends on the last bias alone, and no comparison of outputs sees a mistake.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

ROWS = 8  # a channel of one pixel needs several to have a variance


def settle(module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Set every batch norm's statistics, in place, to those of ``inputs`` (ROWS rows or so, float32, random)."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches seen, here of one
        norm.train()
    with torch.no_grad():
        module(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
