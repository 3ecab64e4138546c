"""Models that the server under test loads by name, and the tests run eagerly beside it."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import threading
import warnings
from pathlib import Path

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


def noisy() -> nn.Module:
    """Says something in every way that does not ask the server's log."""
    warnings.warn("the model\nwarns", stacklevel=1)
    logging.getLogger("torch.export").warning("torch says so")
    failing = threading.Thread(target=lambda: 1 / 0)
    failing.start()
    failing.join()
    return Small()


class Echo(nn.Module):
    """Gives back what it takes; its inputs are called as the Open Inference Protocol calls their types."""

    NAMES = ("bool", "uint8", "int8", "int16", "int32", "int64", "fp16", "bf16", "fp32", "fp64", "nothing")

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.NAMES, (tensor.clone() for tensor in tensors), strict=True))


def holds_the_interpreter() -> nn.Module:
    """No other thread of the process runs Python until somebody opens the pipe "release"."""
    Path("begun").touch()
    os.close(ctypes.PyDLL(None).open(b"release", os.O_RDONLY))  # a PyDLL's functions keep the interpreter's lock
    return Small()


def computes_in_python() -> nn.Module:
    """Five threads want the interpreter until there is a file "release"."""
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(100))

    for _ in range(4):
        threading.Thread(target=compute).start()
    Path("begun").touch()
    while not Path("release").exists():
        sum(range(100_000))
    over.set()
    return Small()
