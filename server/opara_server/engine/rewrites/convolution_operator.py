"""``opara::convolution``: a convolution with bias, residual and ReLU in one kernel, whose result lies where it is told.

PyTorch allocates the result of cuDNN's kernels itself. Here it is an argument: a buffer whose memory is planned, or the
channels of a tensor that would otherwise be concatenated by a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from opara_server.engine.rewrites.convolution_layer import Layer, form
from opara_server.engine.rewrites.convolution_plans import run

aten = torch.ops.aten


@torch.library.custom_op("opara::convolution", mutates_args=("out",), tags=(torch.Tag.needs_exact_strides,))
def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
    plan: str,  # noqa: ARG001 - of kernels on GPUs
    out: Tensor,
) -> None:
    """``out`` = conv2d(x, weight, bias) + residual, and its ReLU where ``relu`` says so.

    ``x`` [N, C, H, W], ``weight`` [O, C / groups, h, w], ``bias`` [O], ``residual`` and ``out`` [N, O, H', W']; ``out``
    has its channels side by side (stride 1) and may be some of those of a wider tensor. Other operands that have not
    are copied first. ``plan``: how cuDNN computes it, a name from ``convolution_plans.fastest``.
    """
    result: Tensor = aten.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)
    if residual is not None:
        result = result.add_(residual)
    out.copy_(result.relu_() if relu else result)


@convolution.register_kernel("cuda")
def _cudnn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,  # noqa: ARG001 - the shapes tell
    relu: bool,
    plan: str,
    out: Tensor,
) -> None:
    given = {"x": x, "weight": weight, "bias": bias, "residual": residual, "out": out}
    tensors = {name: _dense(tensor) for name, tensor in given.items() if tensor is not None}
    forms = {name: form(tensor) for name, tensor in tensors.items() if name != "bias"}
    layer = Layer(
        device=x.device,
        dtype=x.dtype,
        x=forms["x"],
        weight=forms["weight"],
        residual=forms.get("residual"),
        out=forms["out"],
        biased=bias is not None,
        geometry=(tuple(stride), tuple(padding), tuple(dilation)),
        relu=relu,
    )
    run(layer, plan, tensors)


def _dense(tensor: Tensor) -> Tensor:
    """With its channels side by side."""
    apart = tensor.dim() == 4 and tensor.stride(1) != 1
    return tensor.contiguous(memory_format=torch.channels_last) if apart else tensor


@convolution.register_fake
def _nothing(*_: Any) -> None:
    """It has no result."""


CONVOLUTION = torch.ops.opara.convolution.default


@register_flop_formula(torch.ops.opara.convolution)
def _flops(x_shape: Any, weight_shape: Any, *others: Any, **__: Any) -> int:
    return conv_flop_count(x_shape, weight_shape, others[-1], transposed=False)
