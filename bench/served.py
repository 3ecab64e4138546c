"""A model of the suite as a source for the server: ``source = "python:bench.served:build"``."""

from __future__ import annotations

import os

import torch
from torch import nn

from bench.models import find_model

NAME = "OPARA_BENCH_MODEL"  # environment variable: which one


def build() -> nn.Module:
    """Always with the same random weights."""
    torch.manual_seed(0)
    return find_model(os.environ[NAME]).build()
