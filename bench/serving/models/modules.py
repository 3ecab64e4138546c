"""The modules that are served. Also imported by the peers, in environments of their own: needs torch and nothing else.

Weights are drawn from one seed, so that every server has the same ones and every answer can be checked.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Identity(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``x``: of any shape; returns ``y``, a copy."""
        return {"y": x.clone()}


class Mlp(nn.Module):
    """784-512-10, as for MNIST."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(784, 512)
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``x``: float32 [n, 784]; returns ``y`` float32 [n, 10]."""
        return {"y": self.head(torch.relu(self.hidden(x)))}


def identity() -> nn.Module:
    return Identity()


def mlp() -> nn.Module:
    """Always with the same random weights."""
    torch.manual_seed(0)
    return Mlp().eval().requires_grad_(False)
