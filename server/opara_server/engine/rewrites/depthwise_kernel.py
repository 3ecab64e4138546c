"""Depthwise convolution of channels_last tensors, in Triton; importing this needs Triton.

A block computes a tile of output pixels × channels, each thread 16 bytes of channels at a time. Nothing is staged: what
neighbouring pixels share comes from the first-level cache. All that describes the layer is known when the kernel is
compiled, so that pixels are found without divisions and rows of any length that is a multiple of 16 bytes are read in
full width; batch sizes share a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.testing import do_bench_cudagraph

CHANNELS = 32  # of a tile: the largest of which common channel counts (96, 168, 336, 672) waste little
PLACES = (64, 32, 16, 8)  # of a tile
TRIED = PLACES[1:]  # by fastest_tile
REPEAT_MS = 2
VECTOR_BYTES = 16
MOST_WARPS = 4
BLOCKS_PER_SM = 2
SCHEDULERS = 4  # of a multiprocessor
WARPS_PER_SCHEDULER = 2  # at which there is enough to do to have a thread compute two pixels
MOST_UNROLLED = tl.constexpr(5)  # rows of a filter: 7 × 7 taps written out make more code than a cache holds


@dataclass(frozen=True)
class Layer:
    """What a kernel is compiled for, and the number of ``rows``. Pairs are of heights and widths; ``padding``: above
    and to the left."""

    rows: int
    channels: int
    size: tuple[int, int]
    out_size: tuple[int, int]
    taps: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    relu_before: bool
    relu_after: bool


@dataclass(frozen=True)
class Tile:
    """What a block computes, by ``warps`` warps: so many channels at so many places of ``per_place`` pixels of a row,
    which are next to each other and share what they read."""

    places: int
    per_place: int
    warps: int


def tile(layer: Layer, dtype: torch.dtype, multiprocessors: int) -> Tile:
    """By rule. Two pixels per place where that leaves WARPS_PER_SCHEDULER. Then the most places of which there are
    BLOCKS_PER_SM blocks for each multiprocessor, else the fewest: small layers want many small blocks."""
    vectors = triton.cdiv(layer.channels * dtype.itemsize, VECTOR_BYTES) * layer.rows * prod(layer.out_size)
    per_place = 2 if vectors >= 32 * WARPS_PER_SCHEDULER * SCHEDULERS * multiprocessors else 1
    enough = (n for n in PLACES if prod(_grid(layer, n, per_place)) >= BLOCKS_PER_SM * multiprocessors)
    return _tile(next(enough, PLACES[-1]), per_place, dtype)


def _tile(places: int, per_place: int, dtype: torch.dtype) -> Tile:
    """One vector per thread up to MOST_WARPS; then a thread uses the weights that it has read again."""
    threads = places * CHANNELS * dtype.itemsize // VECTOR_BYTES
    return Tile(places, per_place, min(MOST_WARPS, max(1, threads // 32)))


def _grid(layer: Layer, places: int, per_place: int) -> tuple[int, int]:
    return triton.cdiv(_places(layer, per_place), places), triton.cdiv(layer.channels, CHANNELS)


def _places(layer: Layer, per_place: int) -> int:
    height, width = layer.out_size
    return int(layer.rows * height * triton.cdiv(width, per_place))


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
    x: Tensor, weight: Tensor, bias: Tensor | None, x_bias: Tensor | None, out: Tensor, layer: Layer, chosen: Tile
) -> None:
    """Operands as ``depthwise_kernel`` has them: images are channels_last."""
    depthwise_kernel[_grid(layer, chosen.places, chosen.per_place)](
        x,
        weight,
        bias,
        x_bias,
        out,
        _places(layer, chosen.per_place),
        layer.channels,
        *layer.size,
        *layer.out_size,
        *layer.taps,
        *layer.stride,
        *layer.padding,
        *layer.dilation,
        layer.relu_before,
        layer.relu_after,
        chosen.places,
        CHANNELS,
        chosen.per_place,
        num_warps=chosen.warps,
    )


@cache
def fastest_tile(layer: Layer, dtype: torch.dtype, device: torch.device, biases: tuple[bool, bool]) -> Tile:
    """By measurement on random tensors, once per process; not during a capture. ``biases``: which there are."""
    x = torch.randn(layer.rows, *layer.size, layer.channels, dtype=dtype, device=device)
    out = x.new_empty(layer.rows, *layer.out_size, layer.channels)
    weight = torch.randn(*layer.taps, layer.channels, device=device)
    bias, x_bias = (torch.randn(layer.channels, device=device) if there else None for there in biases)

    def duration(chosen: Tile) -> float:
        return float(do_bench_cudagraph(lambda: launch(x, weight, bias, x_bias, out, layer, chosen), rep=REPEAT_MS))

    return min((_tile(n, per_place, dtype) for n in TRIED for per_place in (1, 2)), key=duration)
