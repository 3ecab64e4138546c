"""``opara::attention``: attention, perhaps with a bias on its scores, as one operator that is one kernel on CUDA.

When Inductor takes ``aten::scaled_dot_product_attention`` with a mask apart, it may end up with PyTorch's reference
formula: two matrix products in float32, a softmax and casts between them. Without one it may take cuDNN's kernel, with
a memset ahead. Of few queries and keys a kernel of ours is faster than any of PyTorch's, all of which are made for
sequences that fill a device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula, sdpa_flop_count

from opara_server.engine.rewrites.attention_tile import Layer, is_ours, tile
from opara_server.engine.triton_call import TritonCall

aten = torch.ops.aten


@torch.library.custom_op("opara::attention", mutates_args=(), tags=(torch.Tag.needs_exact_strides,))
def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """softmax(query @ key.T * scale + bias) @ value.

    ``query`` [B, H, Q, D], ``key`` [B, H, K, D], ``value`` [B, H, K, E], all of one dtype with ``bias``
    [B or 1, H or 1, Q or 1, K or more], of which the columns past K are not looked at: PyTorch's kernel wants rows
    that start at multiples of 16 bytes. ``scale``: 1 / sqrt(D) if None. The result [B, H, Q, E] lies in memory as
    [B, Q, H, E]; where a query's scores are all -inf, it is 0.
    """
    out: Tensor = aten.scaled_dot_product_attention(
        query, key, value, _scores(query, key, bias), 0.0, causal, scale=scale
    )
    return out.transpose(1, 2).contiguous().transpose(1, 2)


@attention.register_kernel("cuda")
def _kernel(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    if is_ours(layer_of(query, key, value)):
        out: Tensor = _shape(query, key, value, bias, causal, scale)
        attention_call(query, key, value, bias, causal, scale, out).run()
        return out
    scores = _scores(query, key, bias)
    results = aten._scaled_dot_product_efficient_attention(query, key, value, scores, False, 0.0, causal, scale=scale)
    efficient: Tensor = results[0]
    return efficient


@torch.library.custom_op("opara::attention_out", mutates_args=("out",), tags=(torch.Tag.needs_exact_strides,))
def attention_out(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float | None, out: Tensor
) -> None:
    """``out`` = attention(...), laid out as that would be: for what our own kernel computes (``is_ours``)."""
    out.copy_(attention(query, key, value, bias, causal, scale))


@attention_out.register_kernel("cuda")
def _launch(*given: Any) -> None:
    attention_call(*given).run()


@attention_out.register_fake
def _nothing(*_: Any) -> None:
    """It has no result."""


def attention_call(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float | None, out: Tensor
) -> TritonCall:
    """Of our own kernel, for the arguments of ``attention_out``. Operands whose heads are in pieces are copied now.

    Raises ValueError where the result would lie otherwise than the kernel writes it.
    """
    from opara_server.engine.rewrites.attention_kernel import triton_call  # noqa: PLC0415 - needs Triton

    if not out.transpose(1, 2).is_contiguous():
        raise ValueError(f"the result of attention does not lie as [B, Q, H, E]: strides {out.stride()}")
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    scores = _scores(query, key, bias)
    strides = None if scores is None else scores.stride()
    chosen = tile(layer_of(query, key, value), torch.cuda.get_device_properties(query.device).multi_processor_count)
    scale = query.shape[3] ** -0.5 if scale is None else scale
    flops = int(sdpa_flop_count(query.shape, key.shape, value.shape))
    return triton_call(query, key, value, bias, strides, out, causal, scale, chosen, flops)


def layer_of(query: Tensor, key: Tensor, value: Tensor) -> Layer:
    """What operands of the operator ask for."""
    rows, heads, queries, width = query.shape
    return Layer(rows, heads, queries, key.shape[2], width, value.shape[3], query.element_size())


def _scores(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor | None:
    """``bias`` as a view with an element for each score."""
    keys = key.shape[2]
    return None if bias is None else bias[..., :keys].expand(*query.shape[:3], keys)


@attention.register_fake
def _shape(
    query: Tensor,
    key: Tensor,  # noqa: ARG001 - the operator's signature
    value: Tensor,
    bias: Tensor | None,  # noqa: ARG001
    causal: bool,  # noqa: ARG001
    scale: float | None,  # noqa: ARG001
) -> Tensor:
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)


ATTENTION = torch.ops.opara.attention.default
ATTENTION_OUT = torch.ops.opara.attention_out.default


@register_flop_formula(torch.ops.opara.attention)
def _flops(query_shape: Any, key_shape: Any, value_shape: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query_shape, key_shape, value_shape))
