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
PIXELS = (64, 32, 16, 8)
VECTOR_BYTES = 16
MOST_WARPS = 4
BLOCKS_PER_SM = 2


@dataclass(frozen=True)
class Tile:
    """What a block computes, and by how many warps."""

    pixels: int
    channels: int
    warps: int


def tile(out: Tensor, multiprocessors: int) -> Tile:
    """The largest tile of which there are BLOCKS_PER_SM for each multiprocessor, else the smallest: small layers want
    many small blocks. One vector per thread up to MOST_WARPS; then a thread uses the weights that it has read again."""
    pixels, channels = out.numel() // out.shape[1], out.shape[1]
    columns = triton.cdiv(channels, CHANNELS)
    enough = (size for size in PIXELS if triton.cdiv(pixels, size) * columns >= BLOCKS_PER_SM * multiprocessors)
    size = next(enough, PIXELS[-1])
    threads = size * CHANNELS * out.element_size() // VECTOR_BYTES
    return Tile(size, CHANNELS, min(MOST_WARPS, max(1, threads // 32)))


@triton.jit  # type: ignore[untyped-decorator]
def depthwise_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    x_bias,
    out,
    pixels,
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
    TILE_PIXELS: tl.constexpr,  # noqa: N803
    TILE_CHANNELS: tl.constexpr,  # noqa: N803
):
    """``x`` [rows, H, W, C], ``weight`` [KERNEL_H, KERNEL_W, C], ``bias`` and ``x_bias`` [C] or None, all
    three float32, which is also what sums are; ``out`` [rows, OUT_H, OUT_W, C]: ``pixels`` × C."""
    pixel = tl.program_id(0) * TILE_PIXELS + tl.arange(0, TILE_PIXELS)
    channel = tl.program_id(1) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    there = channel < C
    top = pixel // OUT_W % OUT_H * STRIDE_H - TOP
    left = pixel % OUT_W * STRIDE_W - LEFT
    image = pixel // (OUT_H * OUT_W) * (H * W)
    total = tl.zeros((TILE_PIXELS, TILE_CHANNELS), tl.float32)
    if x_bias is not None:
        shift = tl.load(x_bias + channel, mask=there, other=0.0)
    PADDING: tl.constexpr = float("-inf") if RELU_BEFORE else 0.0  # noqa: N806 - zero after bias and ReLU
    for i in tl.range(KERNEL_H, loop_unroll_factor=1 if KERNEL_H > 5 else KERNEL_H):
        for j in tl.static_range(KERNEL_W):
            row = top + i * DILATION_H
            column = left + j * DILATION_W
            inside = (pixel < pixels) & (row >= 0) & (row < H) & (column >= 0) & (column < W)
            read = inside[:, None] & there[None, :]
            at = (image + row * W + column)[:, None] * C + channel[None, :]
            value = tl.load(x + at, mask=read, other=PADDING).to(tl.float32)
            if x_bias is not None:
                value += shift[None, :]
            if RELU_BEFORE:
                value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
            elif x_bias is not None:
                value = tl.where(read, value, 0.0)
            total += value * tl.load(weight + (i * KERNEL_W + j) * C + channel, mask=there, other=0.0)[None, :]
    if bias is not None:
        total += tl.load(bias + channel, mask=there, other=0.0)[None, :]
    if RELU_AFTER:
        total = tl.maximum(total, 0.0, propagate_nan=tl.PropagateNan.ALL)
    written = (pixel < pixels)[:, None] & there[None, :]
    tl.store(out + pixel[:, None] * C + channel[None, :], total.to(out.dtype.element_ty), mask=written)


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
    pixels = rows * height * width
    grid = (triton.cdiv(pixels, chosen.pixels), triton.cdiv(channels, chosen.channels))
    depthwise_kernel[grid](
        x,
        weight,
        bias,
        x_bias,
        out,
        pixels,
        C=channels,
        H=x.shape[2],
        W=x.shape[3],
        OUT_H=height,
        OUT_W=width,
        KERNEL_H=weight.shape[0],
        KERNEL_W=weight.shape[1],
        **layer,
        TILE_PIXELS=chosen.pixels,
        TILE_CHANNELS=chosen.channels,
        num_warps=chosen.warps,
    )
