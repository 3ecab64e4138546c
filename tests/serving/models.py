"""Model sources that the repository tests name in their model.toml."""

from __future__ import annotations

import sys

import torch
from torch import nn


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0]))
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = self.drop(x * self.scale)
        return scaled


def not_a_module() -> int:
    return 7


def broken() -> nn.Module:
    raise OSError("no such disk")


def exits() -> nn.Module:
    sys.exit(3)


def branchy() -> nn.Module:
    torch.manual_seed(0)
    return Branchy()


class Branchy(nn.Module):
    """Two branches, for the real engine."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 8), nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.left(x)) + torch.tanh(self.right(x))


NUMBER = 7
