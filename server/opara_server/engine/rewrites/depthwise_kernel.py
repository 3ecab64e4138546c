"""Depthwise convolution of channels_last tensors, in Triton; importing this needs Triton.

A block computes a tile of output pixels × channels, each thread 16 bytes of channels at a time. Nothing is staged: what
neighbouring pixels share is read once for those of a thread, and else comes from the first-level cache. A small layer
takes as long as its threads wait for memory: they can ask for all that they read of a row of the filter before they
wait for any of it, and share the rows of a filter. All that describes the layer is known when the kernel is compiled,
so that pixels are found without divisions and rows of any length that is a multiple of 16 bytes are read in full
width; batch sizes share a kernel.

Weights are loaded in the shape of the tile: Triton hands smaller loads on through shared memory, and waits each time.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from opara_server.engine.rewrites.depthwise_tile import CHANNELS, Layer, Tile, flops, grid, places
from opara_server.engine.triton_call import TritonCall


@triton.jit(do_not_specialize=["places"])  # type: ignore[untyped-decorator]
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
    SPLIT: tl.constexpr,  # noqa: N803
    HELD: tl.constexpr,  # noqa: N803
):
    """``x`` [rows, H, W, C], ``weight`` [KERNEL_H, KERNEL_W, C], ``bias`` and ``x_bias`` [C] or None, all
    three float32, which is also what sums are; ``out`` [rows, OUT_H, OUT_W, C]. ``places``: of all rows."""
    TILE: tl.constexpr = (SPLIT, TILE_PLACES, TILE_CHANNELS)  # noqa: N806
    ROW_PLACES: tl.constexpr = (OUT_W + PER_PLACE - 1) // PER_PLACE  # noqa: N806
    STEPS: tl.constexpr = (KERNEL_H + SPLIT - 1) // SPLIT  # noqa: N806
    SPAN: tl.constexpr = (KERNEL_W - 1) * DILATION_W + (PER_PLACE - 1) * STRIDE_W + 1  # noqa: N806
    PADDING: tl.constexpr = float("-inf") if RELU_BEFORE else 0.0  # noqa: N806 - zero after bias and ReLU
    split = tl.arange(0, SPLIT)[:, None, None]
    place = (tl.program_id(0) * TILE_PLACES + tl.arange(0, TILE_PLACES))[None, :, None]
    channel = (tl.program_id(1) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS))[None, None, :]
    there = tl.broadcast_to((place < places) & (channel < C), TILE)
    out_column = place % ROW_PLACES * PER_PLACE
    top = place // ROW_PLACES % OUT_H * STRIDE_H - TOP
    left = out_column * STRIDE_W - LEFT
    start = x + (((place // (OUT_H * ROW_PLACES) * H + top) * W + left) * C + channel)
    total = tl.zeros(TILE, tl.float32)
    if bias is not None:
        total += tl.load(tl.broadcast_to(bias + channel, TILE), mask=there & (split == 0), other=0.0)
    totals = (total,) * PER_PLACE
    shift = None
    if x_bias is not None:
        shift = tl.load(tl.broadcast_to(x_bias + channel, TILE), mask=there)
    for step in tl.static_range(STEPS):
        i = step * SPLIT + split
        taps = weight + channel
        read = _read(start, taps, i, top, left, there, H, W, C, KERNEL_H, KERNEL_W, DILATION_H, SPAN, PADDING)
        # Always true, but not known to be: else the assembler moves loads behind the wait for others.
        if places > 0 if HELD else True:
            totals = _add(totals, read, shift, KERNEL_W, STRIDE_W, DILATION_W, RELU_BEFORE)
    end = out + ((place // ROW_PLACES * OUT_W + out_column) * C + channel)
    for pixel in tl.static_range(PER_PLACE):
        total = totals[pixel]
        if SPLIT > 1:
            total = tl.broadcast_to(tl.sum(total, 0, keep_dims=True), TILE)
        if RELU_AFTER:
            total = tl.maximum(total, 0.0, propagate_nan=tl.PropagateNan.ALL)
        written = there & (split == 0) & (out_column + pixel < OUT_W)
        tl.store(tl.broadcast_to(end + pixel * C, TILE), total.to(out.dtype.element_ty), mask=written)


@triton.jit  # type: ignore[untyped-decorator]
def _read(  # type: ignore[no-untyped-def]
    x,
    weight,
    i,
    top,
    left,
    there,
    H: tl.constexpr,  # noqa: N803
    W: tl.constexpr,  # noqa: N803
    C: tl.constexpr,  # noqa: N803
    KERNEL_H: tl.constexpr,  # noqa: N803
    KERNEL_W: tl.constexpr,  # noqa: N803
    DILATION_H: tl.constexpr,  # noqa: N803
    SPAN: tl.constexpr,  # noqa: N803
    PADDING: tl.constexpr,  # noqa: N803
):
    """For row ``i`` of the filter: which pixels there are, these, and the taps."""
    row = top + i * DILATION_H
    inside = there & (i < KERNEL_H) & (row >= 0) & (row < H)
    taps = tl.broadcast_to(weight + tl.minimum(i, KERNEL_H - 1) * (KERNEL_W * C), there.shape)
    reads, pixels, factors = (), (), ()
    for o in tl.static_range(SPAN):
        read = inside & (left + o >= 0) & (left + o < W)
        reads += (read,)  # type: ignore[assignment]
        pixels += (tl.load(x + (i * (DILATION_H * W * C) + o * C), mask=read, other=PADDING),)  # type: ignore[assignment]
    for o in tl.static_range(KERNEL_W):
        factors += (tl.load(taps + o * C, mask=there),)  # type: ignore[assignment]
    return reads, pixels, factors


@triton.jit  # type: ignore[untyped-decorator]
def _add(  # type: ignore[no-untyped-def]
    totals,
    read,
    shift,
    KERNEL_W: tl.constexpr,  # noqa: N803
    STRIDE_W: tl.constexpr,  # noqa: N803
    DILATION_W: tl.constexpr,  # noqa: N803
    RELU_BEFORE: tl.constexpr,  # noqa: N803
):
    """``totals``, one of each pixel of a place, with what ``read`` adds to them."""
    reads, pixels, factors = read
    values, sums = (), ()
    for o in tl.static_range(len(pixels)):
        value = pixels[o].to(tl.float32)
        if shift is not None:
            value += shift
        if RELU_BEFORE:
            value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
        elif shift is not None:
            value = tl.where(reads[o], value, 0.0)
        values += (value,)  # type: ignore[assignment]
    for pixel in tl.static_range(len(totals)):
        total = totals[pixel]
        for o in tl.static_range(KERNEL_W):
            total += values[pixel * STRIDE_W + o * DILATION_W] * factors[o]
        sums += (total,)  # type: ignore[assignment]
    return sums


def triton_call(
    x: Tensor, weight: Tensor, bias: Tensor | None, x_bias: Tensor | None, out: Tensor, layer: Layer, tile: Tile
) -> TritonCall:
    """Operands as ``depthwise_kernel`` has them: images are channels_last."""
    arguments = (
        x,
        weight,
        bias,
        x_bias,
        out,
        places(layer, tile.per_place),
        layer.channels,
        *layer.size,
        *layer.out_size,
        *layer.taps,
        *layer.stride,
        *layer.padding,
        *layer.dilation,
        layer.relu_before,
        layer.relu_after,
        tile.places,
        CHANNELS,
        tile.per_place,
        tile.split,
        tile.held,
    )
    return TritonCall(depthwise_kernel, grid(layer, tile), arguments, tile.warps, flops(layer))
