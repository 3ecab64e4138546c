"""``opara::depthwise``: a depthwise convolution with what comes before and after it, in one kernel of ours on CUDA.

cuDNN takes 3 to 6 µs for layers that move a few hundred kilobytes, and pads, adds a bias and applies a ReLU by kernels
of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from opara_server.engine.rewrites.depthwise_tile import Layer, tile
from opara_server.engine.triton_call import TritonCall

aten = torch.ops.aten


@torch.library.custom_op("opara::depthwise", mutates_args=(), tags=(torch.Tag.needs_exact_strides,))
def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
    relu_before: bool,
    relu_after: bool,
) -> Tensor:
    """relu(conv2d(pad(relu(x + x_bias)), weight) + bias), each ReLU if it is wanted.

    ``x`` [N, C, H, W], ``weight`` [h, w, C], ``bias`` and ``x_bias`` [C], the weights float32 (nothing to convert on
    each call), ``padding`` zeros above and to the left, and below and to the right as many as the result's ``size``
    [H', W'] takes. The result [N, C, H', W'] is channels_last. An ``x`` that is not channels_last is copied first.
    """
    dtype = x.dtype
    x = x.to(weight.dtype)
    if x_bias is not None:
        x = x + x_bias[:, None, None]
    if relu_before:
        x = x.relu()
    ends = [
        (out - 1) * step + (taps - 1) * apart + 1 - (start + length)
        for out, step, taps, apart, start, length in zip(
            size, stride, weight.shape[:2], dilation, padding, x.shape[2:], strict=True
        )
    ]
    x = functional.pad(x, (padding[1], ends[1], padding[0], ends[0]))
    out = functional.conv2d(x, weight.permute(2, 0, 1)[:, None], bias, stride, 0, dilation, weight.shape[2])
    return (out.relu() if relu_after else out).to(dtype).contiguous(memory_format=torch.channels_last)


@depthwise.register_kernel("cuda")
def _kernel(*given: Any) -> Tensor:
    out: Tensor = _shape(*given)
    _launch(*given, out)
    return out


@torch.library.custom_op("opara::depthwise_out", mutates_args=("out",), tags=(torch.Tag.needs_exact_strides,))
def depthwise_out(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
    relu_before: bool,
    relu_after: bool,
    out: Tensor,
) -> None:
    """``out``, which is channels_last, = depthwise(...)."""
    out.copy_(depthwise(x, weight, bias, x_bias, stride, padding, dilation, size, relu_before, relu_after))


@depthwise_out.register_kernel("cuda")
def _launch(*given: Any) -> None:
    depthwise_call(*given).run()


@depthwise_out.register_fake
def _nothing(*_: Any) -> None:
    """It has no result."""


def depthwise_call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
    relu_before: bool,
    relu_after: bool,
    out: Tensor,
) -> TritonCall:
    """Of our kernel, for the arguments of ``depthwise_out``. An ``x`` that is not channels_last is copied now.

    Raises ValueError where the result would lie otherwise than the kernel writes it.
    """
    from opara_server.engine.rewrites.depthwise_kernel import triton_call  # noqa: PLC0415 - needs Triton

    if not out.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"the result of a depthwise convolution is not channels_last: strides {out.stride()}")
    x = x.contiguous(memory_format=torch.channels_last)
    rows, channels, height, width = x.shape
    layer = Layer(
        rows,
        channels,
        (height, width),
        (size[0], size[1]),
        (weight.shape[0], weight.shape[1]),
        (stride[0], stride[1]),
        (padding[0], padding[1]),
        (dilation[0], dilation[1]),
        relu_before,
        relu_after,
        x.itemsize,
    )
    chosen = tile(layer, torch.cuda.get_device_properties(x.device).multi_processor_count)
    return triton_call(x, weight.contiguous(), bias, x_bias, out, layer, chosen)


@depthwise.register_fake
def _shape(
    x: Tensor,
    weight: Tensor,  # noqa: ARG001 - the operator's signature
    bias: Tensor | None,  # noqa: ARG001
    x_bias: Tensor | None,  # noqa: ARG001
    stride: Sequence[int],  # noqa: ARG001
    padding: Sequence[int],  # noqa: ARG001
    dilation: Sequence[int],  # noqa: ARG001
    size: Sequence[int],
    relu_before: bool,  # noqa: ARG001
    relu_after: bool,  # noqa: ARG001
) -> Tensor:
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


DEPTHWISE = torch.ops.opara.depthwise.default
DEPTHWISE_OUT = torch.ops.opara.depthwise_out.default


@register_flop_formula(torch.ops.opara.depthwise)
def _flops(_x_shape: Any, weight_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    rows, channels, height, width = out_shape
    return int(2 * rows * channels * height * width * weight_shape[0] * weight_shape[1])
