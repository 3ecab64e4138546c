"""What stands for a model on a GPU: its thread waits, as it would for a device, and uses no processor meanwhile.

What a replay of a captured graph takes hardly varies (0.05 to 0.1 % between runs of the networks in bench/results), so
a sleep is a fair one. Longer than the 5 ms up to which a server without a GPU runs batches on the thread that takes
calls: these run on the executor's own, as on a GPU.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

BATCH_S = {1: 0.008, 2: 0.009, 4: 0.011, 8: 0.016}


@torch.library.custom_op("opara_bench::device", mutates_args=())
def device(x: Tensor) -> Tensor:
    """A copy of ``x`` [n, 16], after BATCH_S of n rows."""
    time.sleep(BATCH_S[len(x)])
    return x.clone()


@device.register_fake
def _shape(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Waiting(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": device(x)}


def waiting() -> nn.Module:
    return Waiting()
