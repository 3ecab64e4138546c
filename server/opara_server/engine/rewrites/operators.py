"""``opara::convolution_relu``: what cuDNN computes in one kernel, as one operator that keeps its operands' layout.

PyTorch has the kernels as ``aten::cudnn_convolution_relu`` and ``aten::cudnn_convolution_add_relu``, for CUDA alone,
with nothing that tells Inductor to hand them channels_last operands: they would be copied on every call. PyTorch
allocates the result itself; the ``out`` overloads of both compute a new tensor and copy it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

aten = torch.ops.aten


@torch.library.custom_op("opara::convolution_relu", mutates_args=(), tags=(torch.Tag.needs_exact_strides,))
def convolution_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """relu(conv2d(x, weight, bias) + residual).

    ``x`` [N, C, H, W], ``weight`` [O, C / groups, h, w], ``bias`` [O], ``residual`` as the result [N, O, H', W'], which
    is channels_last. Operands that are not channels_last are copied first.
    """
    out: Tensor = aten.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)
    if residual is not None:
        out = out.add_(residual)
    return out.relu_().contiguous(memory_format=torch.channels_last)


@convolution_relu.register_kernel("cuda")
def _cudnn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
    if residual is None:
        out: Tensor = aten.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, groups)
    else:
        residual = residual.contiguous(memory_format=torch.channels_last)
        out = aten.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, stride, padding, dilation, groups)
    return out


@convolution_relu.register_fake
def _shape(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,  # noqa: ARG001 - the operator's signature
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    out = aten.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)
    return torch.empty_like(out, memory_format=torch.channels_last)


CONVOLUTION_RELU = torch.ops.opara.convolution_relu.default


@register_flop_formula(torch.ops.opara.convolution_relu)
def _flops(x_shape: Any, weight_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return conv_flop_count(x_shape, weight_shape, out_shape, transposed=False)
