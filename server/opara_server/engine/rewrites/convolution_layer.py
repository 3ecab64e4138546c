"""What a plan of cuDNN's is for: a convolution with what follows it, but for its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Form:
    """Of a tensor [N, C, H, W]."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """relu(conv(x, weight) + bias + residual), as far as there are such. ``geometry``: stride, padding, dilation."""

    device: torch.device
    dtype: torch.dtype
    x: Form
    weight: Form
    residual: Form | None
    out: Form
    biased: bool
    geometry: tuple[tuple[int, ...], ...]
    relu: bool

    @property
    def sparse(self) -> bool:
        """The result is some of the channels of a wider tensor: there is memory between its pixels."""
        return self.out.stride[0] > prod(self.out.shape[1:])

    @property
    def digest(self) -> str:
        """Of everything but the device."""
        parts = (self.dtype, self.x, self.weight, self.residual, self.out, self.biased, self.geometry, self.relu)
        return sha256(repr(parts).encode()).hexdigest()[:16]


def form(tensor: Tensor) -> Form:
    """Dimensions of size 1 get the strides that they would have in channels_last: PyTorch gives them any."""
    shape, stride = tuple(tensor.shape), list(tensor.stride())
    step = 1
    for dimension in (1, 3, 2, 0):
        if shape[dimension] == 1:
            stride[dimension] = step
        step = stride[dimension] * shape[dimension]
    return Form(shape, tuple(stride))
