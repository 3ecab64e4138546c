"""``opara::linear_activation``: a linear layer with its bias and ReLU or GELU in one kernel, whose result lies where it
is told.

PyTorch allocates the result of ``aten::_addmm_activation`` itself, out of reach of a plan of memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import addmm_flop, register_flop_formula

aten = torch.ops.aten


@torch.library.custom_op("opara::linear_activation", mutates_args=("out",), tags=(torch.Tag.needs_exact_strides,))
def linear_activation(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool, out: Tensor) -> None:
    """``out`` = relu(x @ weight + bias), or the GELU that the device's kernel computes where ``gelu`` says so.

    ``x`` [M, K], ``weight`` [K, N], ``bias`` [N], ``out`` [M, N], which is contiguous.
    """
    aten._addmm_activation.out(bias, x, weight, use_gelu=gelu, out=out)


@linear_activation.register_fake
def _nothing(*_: Any) -> None:
    """It has no result."""


LINEAR_ACTIVATION = torch.ops.opara.linear_activation.default


@register_flop_formula(torch.ops.opara.linear_activation)
def _flops(x_shape: Any, weight_shape: Any, bias_shape: Any, *_: Any, **__: Any) -> int:
    return addmm_flop(bias_shape, x_shape, weight_shape)
