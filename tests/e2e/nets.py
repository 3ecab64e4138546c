"""Models that the server under test loads by name, and the tests run eagerly beside it."""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn

TOKENS, WIDTH = 32, 16


class Branches(nn.Module):
    """Three branches over ``x`` and a table over ``tokens``; each row's answer depends on that row alone."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU(), nn.Linear(width, 8)) for width in (8, 16, 24)
        )
        self.table = nn.Embedding(TOKENS, 8)

    def forward(self, x: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        joined = torch.cat([*(branch(x) for branch in self.branches), self.table(tokens).sum(1)], 1)
        return {"features": joined, "positive": joined.sum(1) > 0}


class Small(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) + 1


def after_imports() -> nn.Module:
    """Fails in a server that looks for garbage in what it imported, or that looks for none."""
    assert gc.isenabled()
    assert gc.get_freeze_count() > 10_000
    return Small()


class Echo(nn.Module):
    """Gives back what it takes; its inputs are called as the Open Inference Protocol calls their types."""

    NAMES = ("bool", "uint8", "int8", "int16", "int32", "int64", "fp16", "bf16", "fp32", "fp64", "nothing")

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.NAMES, (tensor.clone() for tensor in tensors), strict=True))
