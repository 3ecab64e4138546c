"""Depthwise convolution of channels_last tensors, in Triton; importing this needs Triton.

A block computes a tile of output pixels × channels, each thread 16 bytes of channels at a time. Nothing is staged: what
neighbouring pixels share comes from the first-level cache. All that describes the layer is known when the kernel is
compiled, so that pixels are found without divisions and rows of any length that is a multiple of 16 bytes are read in
full width; batch sizes share a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 32  # of a tile: the largest of which common channel counts (96, 168, 336, 672) waste little
PLACES = (64, 32, 16, 8)
VECTOR_BYTES = 16
MOST_WARPS = 4
BLOCKS_PER_SM = 2
SCHEDULERS = 4  # of a multiprocessor
WARPS_PER_SCHEDULER = 2  # at which there is enough to do to have a thread compute two pixels
MOST_UNROLLED = tl.constexpr(5)  # rows of a filter: 7 × 7 taps written out make more code than a cache holds


@dataclass(frozen=True)
class Tile:
    """What a block computes, by ``warps`` warps: so many channels at so many places of ``per_place`` pixels of a row,
    which are next to each other and share what they read."""

    places: int
    channels: int
    per_place: int
    warps: int


def tile(out: Tensor, multiprocessors: int) -> Tile:
    """Two pixels per place where that leaves WARPS_PER_SCHEDULER. Then the most places of which there are BLOCKS_PER_SM
    blocks for each multiprocessor, else the fewest: small layers want many small blocks. One vector per thread up to
    MOST_WARPS; then a thread uses the weights that it has read again."""
    rows, channels, height, width = out.shape
    vector = VECTOR_BYTES // out.element_size()
    threads = rows * height * width * triton.cdiv(channels, vector)
    per_place = 2 if threads >= 32 * WARPS_PER_SCHEDULER * SCHEDULERS * multiprocessors else 1
    places, columns = rows * height * triton.cdiv(width, per_place), triton.cdiv(channels, CHANNELS)
    enough = (size for size in PLACES if triton.cdiv(places, size) * columns >= BLOCKS_PER_SM * multiprocessors)
    size = next(enough, PLACES[-1])
    return Tile(size, CHANNELS, per_place, min(MOST_WARPS, max(1, size * CHANNELS // vector // 32)))


@triton.jit  # type: ignore[untyped-decorator]
def depthwise_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    x_bias,
    out,
    places,
    C: tl.constexpr,  # noqa: N803 - Triton's way to name constants
    H: tl.constexpr,  # noqa: N803
    W: tl.constexpr,  # noqa: N803
    OUT_H: tl.constexpr,  # noqa: N803
    OUT_W: tl.constexpr,  # noqa: N803
    KERNEL_H: tl.constexpr,  # noqa: N803
    KERNEL_W: tl.constexpr,  # noqa: N803
    STRIDE_H: tl.constexpr,  # noqa: N803
    STRIDE_W: tl.constexpr,  # noqa: N803
    TOP: tl.constexpr,  # noqa: N803
    LEFT: tl.constexpr,  # noqa: N803
    DILATION_H: tl.constexpr,  # noqa: N803
    DILATION_W: tl.constexpr,  # noqa: N803
    RELU_BEFORE: tl.constexpr,  # noqa: N803
    RELU_AFTER: tl.constexpr,  # noqa: N803
    TILE_PLACES: tl.constexpr,  # noqa: N803
    TILE_CHANNELS: tl.constexpr,  # noqa: N803
    PER_PLACE: tl.constexpr,  # noqa: N803
):
    """``x`` [rows, H, W, C], ``weight`` [KERNEL_H, KERNEL_W, C], ``bias`` and ``x_bias`` [C] or None, all
    three float32, which is also what sums are; ``out`` [rows, OUT_H, OUT_W, C]. ``places``: of all rows."""
    place = tl.program_id(0) * TILE_PLACES + tl.arange(0, TILE_PLACES)
    channel = tl.program_id(1) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    there = channel < C
    ROW_PLACES: tl.constexpr = (OUT_W + PER_PLACE - 1) // PER_PLACE  # noqa: N806
    out_column = place % ROW_PLACES * PER_PLACE
    top = place // ROW_PLACES % OUT_H * STRIDE_H - TOP
    left = out_column * STRIDE_W - LEFT
    image = place // (OUT_H * ROW_PLACES) * (H * W)
    first = tl.zeros((TILE_PLACES, TILE_CHANNELS), tl.float32)
    second = tl.zeros((TILE_PLACES, TILE_CHANNELS), tl.float32)
    if x_bias is not None:
        shift = tl.load(x_bias + channel, mask=there, other=0.0)
    PADDING: tl.constexpr = float("-inf") if RELU_BEFORE else 0.0  # noqa: N806 - zero after bias and ReLU
    for i in tl.range(KERNEL_H, loop_unroll_factor=KERNEL_H if KERNEL_H <= MOST_UNROLLED else 1):
        row = top + i * DILATION_H
        for o in tl.static_range((KERNEL_W - 1) * DILATION_W + (PER_PLACE - 1) * STRIDE_W + 1):
            column = left + o
            inside = (place < places) & (row >= 0) & (row < H) & (column >= 0) & (column < W)
            read = inside[:, None] & there[None, :]
            at = (image + row * W + column)[:, None] * C + channel[None, :]
            value = tl.load(x + at, mask=read, other=PADDING).to(tl.float32)
            if x_bias is not None:
                value += shift[None, :]
            if RELU_BEFORE:
                value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
            elif x_bias is not None:
                value = tl.where(read, value, 0.0)
            taps = weight + i * KERNEL_W * C + channel
            if o % DILATION_W == 0 and o // DILATION_W < KERNEL_W:
                first += value * tl.load(taps + o // DILATION_W * C, mask=there, other=0.0)[None, :]
            if PER_PLACE == 2 and o >= STRIDE_W and (o - STRIDE_W) % DILATION_W == 0:
                second += value * tl.load(taps + (o - STRIDE_W) // DILATION_W * C, mask=there, other=0.0)[None, :]
    end = out + (place // ROW_PLACES * OUT_W + out_column)[:, None] * C + channel[None, :]
    written = (place < places)[:, None] & there[None, :]
    _store(end, first, bias, channel, there, written, RELU_AFTER)
    if PER_PLACE == 2:
        _store(end + C, second, bias, channel, there, written & (out_column + 1 < OUT_W)[:, None], RELU_AFTER)


@triton.jit  # type: ignore[untyped-decorator]
def _store(end, total, bias, channel, there, written, RELU_AFTER: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    if bias is not None:
        total += tl.load(bias + channel, mask=there, other=0.0)[None, :]
    if RELU_AFTER:
        total = tl.maximum(total, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(end, total.to(end.dtype.element_ty), mask=written)


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_bias: Tensor | None,
    out: Tensor,
    layer: Mapping[str, int],
    chosen: Tile,
) -> None:
    """``layer``: the kernel's constants by name, from STRIDE_H to RELU_AFTER. Both images are channels_last."""
    rows, channels, height, width = out.shape
    places = rows * height * triton.cdiv(width, chosen.per_place)
    grid = (triton.cdiv(places, chosen.places), triton.cdiv(channels, chosen.channels))
    depthwise_kernel[grid](
        x,
        weight,
        bias,
        x_bias,
        out,
        places,
        C=channels,
        H=x.shape[2],
        W=x.shape[3],
        OUT_H=height,
        OUT_W=width,
        KERNEL_H=weight.shape[0],
        KERNEL_W=weight.shape[1],
        **layer,
        TILE_PLACES=chosen.places,
        TILE_CHANNELS=chosen.channels,
        PER_PLACE=chosen.per_place,
        num_warps=chosen.warps,
    )
