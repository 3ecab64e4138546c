"""Depthwise layers as the kernel sees them, and the tiles in which it computes them."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

CHANNELS = 32  # of a tile: the largest of which common channel counts (96, 168, 336, 672) waste little
VECTOR_BYTES = 16  # what a thread reads at a time
WARP = 32
MOST_WARPS = 8
WIDEST = 8  # taps of a row that a thread has the registers to ask for together
FEW_TAPS = 9  # of a filter
SOME_TAPS = 25
FEW_VECTORS = 100  # per multiprocessor: there are hardly enough threads to keep it busy
SOME_VECTORS = 200
MANY_VECTORS = 800  # what counts is how much is read and computed, no longer how long it takes


@dataclass(frozen=True)
class Layer:
    """What a kernel is compiled for, and the number of ``rows``. Pairs are of heights and widths; ``padding``: above
    and to the left. ``itemsize``: bytes of an element of the images."""

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
    itemsize: int


@dataclass(frozen=True)
class Tile:
    """What a block computes, by ``warps`` warps: CHANNELS channels at so many places of ``per_place`` pixels of a row,
    which are next to each other and share what they read. ``split`` threads share the rows of a filter. All four are
    powers of two. ``held``: a thread asks for all that it reads of a row before it waits for any of it; else that is
    left to the assembler, which asks for more with more registers, or for less to save them."""

    places: int
    per_place: int
    split: int
    held: bool
    warps: int


def tile(layer: Layer, multiprocessors: int) -> Tile:
    """By rule, as measured on an H200 for NASNet-A-large in float16 and batches of 1 and 8: over all of its layers 1 %
    slower than the fastest of 20 tiles for each. Of equals that which takes fewer threads."""
    vectors = layer.rows * prod(layer.out_size) * layer.channels / _vector(layer) / multiprocessors
    taps = prod(layer.taps)
    if vectors < FEW_VECTORS:
        return _tile(layer, 8, 4, 4, True)
    if taps <= FEW_TAPS:
        return _tile(layer, 16, 4, 1, False)
    if vectors >= MANY_VECTORS:
        return _tile(layer, 16, 4, 1, True)
    if taps > SOME_TAPS:
        return _tile(layer, 8, 4, 4, True)
    return _tile(layer, 16, 2, 1, vectors >= SOME_VECTORS)


def grid(layer: Layer, tile: Tile) -> tuple[int, int]:
    """Blocks along the places and along the channels."""
    return -(-places(layer, tile.per_place) // tile.places), -(-layer.channels // CHANNELS)


def places(layer: Layer, per_place: int) -> int:
    """Of all rows; the last of a line of pixels may have fewer than ``per_place``."""
    height, width = layer.out_size
    return layer.rows * height * -(-width // per_place)


def flops(layer: Layer) -> int:
    """Of all rows: a product and a sum per tap."""
    return 2 * layer.rows * layer.channels * prod(layer.out_size) * prod(layer.taps)


def _tile(layer: Layer, places: int, per_place: int, split: int, held: bool) -> Tile:
    """No more pixels than a line has and no more threads than the filter has rows, both rounded up to a power of two.
    A vector of channels per thread, as far as MOST_WARPS go."""
    split = min(split, _power_of_2(layer.taps[0]))
    per_place = min(per_place, _power_of_2(layer.out_size[1]))
    if layer.taps[1] > WIDEST:
        per_place, held = 1, False
    threads = split * places * CHANNELS // _vector(layer)
    return Tile(places, per_place, split, held, max(1, min(MOST_WARPS, threads // WARP)))


def _vector(layer: Layer) -> int:
    """Channels that a thread reads at once."""
    return gcd(layer.channels, VECTOR_BYTES // layer.itemsize)


def _power_of_2(least: int) -> int:
    return 1 << (least - 1).bit_length()
