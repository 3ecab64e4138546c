"""The model that is asked: what it gives can be told from what it was given, wherever it lies."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Negated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.neg(x)
