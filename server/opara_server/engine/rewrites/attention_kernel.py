"""Attention of few queries and keys, in Triton; importing this needs Triton.

A block computes a tile of one head's queries. At small batches there is too little work for a device, so what counts is
how long a block takes: tiles are small, and most often see all keys at once. With more keys than fit a block goes
through them in steps, and what it has summed is scaled to the highest score so far (Milakov and Gimelshein, "Online
normalizer calculation for softmax", 2018; Dao et al., "FlashAttention", 2022). All that describes a layer but its rows
is known when the kernel is compiled.
"""

from __future__ import annotations

from math import e, log2

import torch
import triton
import triton.language as tl
from torch import Tensor

from opara_server.engine.rewrites.attention_tile import WARPS, Tile, padded
from opara_server.engine.triton_call import TritonCall

LOG2_E = tl.constexpr(log2(e))


@triton.jit  # type: ignore[untyped-decorator]
def attention_kernel(  # type: ignore[no-untyped-def]
    query,
    key,
    value,
    bias,
    out,
    scale,
    HEADS: tl.constexpr,  # noqa: N803 - Triton's way to name constants
    QUERIES: tl.constexpr,  # noqa: N803
    KEYS: tl.constexpr,  # noqa: N803
    D: tl.constexpr,  # noqa: N803
    E: tl.constexpr,  # noqa: N803
    QUERY_STRIDES: tl.constexpr,  # noqa: N803
    KEY_STRIDES: tl.constexpr,  # noqa: N803
    VALUE_STRIDES: tl.constexpr,  # noqa: N803
    BIAS_STRIDES: tl.constexpr,  # noqa: N803
    CAUSAL: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
    TILE_QUERIES: tl.constexpr,  # noqa: N803
    TILE_KEYS: tl.constexpr,  # noqa: N803
    TILE_D: tl.constexpr,  # noqa: N803
    TILE_E: tl.constexpr,  # noqa: N803
):
    """``query`` [rows, HEADS, QUERIES, D], ``key`` [rows, HEADS, KEYS, D] and ``value`` [rows, HEADS, KEYS, E], the
    elements of a head side by side; ``bias`` [rows, HEADS, QUERIES, KEYS] or None; ``out`` [rows, QUERIES, HEADS, E].
    ``scale``: of the scores, times log2(e)."""
    row = tl.program_id(0).to(tl.int64) // HEADS
    head = tl.program_id(0).to(tl.int64) % HEADS
    i = tl.program_id(1) * TILE_QUERIES + tl.arange(0, TILE_QUERIES)
    d = tl.arange(0, TILE_D)
    at = tl.arange(0, TILE_E)
    query += row * QUERY_STRIDES[0] + head * QUERY_STRIDES[1]
    key += row * KEY_STRIDES[0] + head * KEY_STRIDES[1]
    value += row * VALUE_STRIDES[0] + head * VALUE_STRIDES[1]
    if bias is not None:
        bias += row * BIAS_STRIDES[0] + head * BIAS_STRIDES[1]
    q_there = (i < QUERIES)[:, None] & (d < D)[None, :]
    q = tl.load(query + i[:, None] * QUERY_STRIDES[2] + d[None, :], mask=q_there, other=0.0)
    highest = tl.full((TILE_QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((TILE_QUERIES,), tl.float32)
    mixed = tl.zeros((TILE_QUERIES, TILE_E), tl.float32)
    # In several steps Triton makes asynchronous copies of loads that only products use. In one step it would wait for
    # keys before it asks for values, unless something is left to do with both.
    FILL: tl.constexpr = 0.0 if KEYS > TILE_KEYS else None  # noqa: N806
    for start in range(0, KEYS, TILE_KEYS):
        j = start + tl.arange(0, TILE_KEYS)
        k_there = (j < KEYS)[None, :] & (d < D)[:, None]
        v_there = (j < KEYS)[:, None] & (at < E)[None, :]
        k = tl.load(key + j[None, :] * KEY_STRIDES[2] + d[:, None], mask=k_there, other=FILL)
        v = tl.load(value + j[:, None] * VALUE_STRIDES[2] + at[None, :], mask=v_there, other=FILL)
        if bias is not None:
            b_there = (i < QUERIES)[:, None] & (j < KEYS)[None, :]
            b = tl.load(bias + i[:, None] * BIAS_STRIDES[2] + j[None, :] * BIAS_STRIDES[3], mask=b_there, other=0.0)
        if FILL is None:
            k = tl.where(k_there, k, 0.0)
        score = tl.dot(q, k, input_precision=PRECISION) * scale
        if FILL is None:
            v = tl.where(v_there, v, 0.0)
        if bias is not None:
            score += b.to(tl.float32) * LOG2_E
        if KEYS % TILE_KEYS:
            score = tl.where((j < KEYS)[None, :], score, float("-inf"))
        if CAUSAL:
            score = tl.where(j[None, :] <= i[:, None], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # all is hidden so far: weights of 0, not NaN
        weight = tl.exp2(score - shift[:, None])
        fading = tl.exp2(highest - shift)
        total = total * fading + tl.sum(weight, 1)
        mixed = tl.dot(weight.to(v.dtype), v, mixed * fading[:, None], input_precision=PRECISION)
        highest = higher
    mixed /= tl.where(total == 0.0, 1.0, total)[:, None]
    end = out + ((row * QUERIES + i[:, None]) * HEADS + head) * E + at[None, :]
    tl.store(end, mixed.to(out.dtype.element_ty), mask=(i < QUERIES)[:, None] & (at < E)[None, :])


def triton_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    bias_strides: tuple[int, ...] | None,
    out: Tensor,
    causal: bool,
    scale: float,
    tile: Tile,
    flops: int,
) -> TritonCall:
    """Operands as ``attention_kernel`` has them, but ``bias``: with ``bias_strides`` it has an element for each score.
    Where nothing is left of a query's scores, its result is 0."""
    rows, heads, queries, d = query.shape
    keys, width = value.shape[2:]
    arguments = (
        query,
        key,
        value,
        bias,
        out,
        scale * LOG2_E.value,
        heads,
        queries,
        keys,
        d,
        width,
        query.stride(),
        key.stride(),
        value.stride(),
        bias_strides,
        causal,
        "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3",
        tile.queries,
        tile.keys,
        padded(d),
        padded(width),
    )
    return TritonCall(attention_kernel, (rows * heads, triton.cdiv(queries, tile.queries)), arguments, WARPS, flops)
