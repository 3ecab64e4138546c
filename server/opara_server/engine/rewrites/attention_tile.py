"""Which attention our own kernel computes, and in which tiles: by rule, so that nothing is measured at a start.

Measured on an H200 beside the fastest of PyTorch's efficient, flash and cuDNN attention, in µs from one launch to the
next in a CUDA graph, heads of 64: 2.7 against 7.8 (8 heads of 128 × 128, a bias), 2.1 against 5.8 (32 × 32), 2.7
against 5.2 (12 heads of 128 × 128), 11.1 against 13.1 (40 rows of those), 6.2 against 9.9 (512 × 512), in float16;
in float32 5.7 against 18.0 (8 heads of 128 × 128), 10.8 against 18.6 (8 rows of those).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

SIDE = 16  # the least of matrices that tensor cores multiply
MOST_WIDTH = 128  # of a head
MOST_KEYS = 512
MOST_SCORES = {2: 2**23, 4: 2**20}  # of a layer, by the bytes of an element: as far as it was measured
QUERIES = (16, 32, 64)  # of a tile
MOST_AT_ONCE = 256  # keys of a tile, if those are all
MOST_PER_STEP = 128  # keys of a tile, if there are more
BYTES_AT_ONCE = 64 * 2**10  # of a tile's keys and values
BYTES_PER_STEP = 32 * 2**10  # while one is computed with, others are on the way
WARPS = 4


@dataclass(frozen=True)
class Layer:
    """``rows`` × ``heads`` products of ``queries`` × ``keys``; heads of ``key_width`` and ``value_width`` elements of
    ``itemsize`` bytes."""

    rows: int
    heads: int
    queries: int
    keys: int
    key_width: int
    value_width: int
    itemsize: int


@dataclass(frozen=True)
class Tile:
    """What a block computes by WARPS: so many queries, with so many keys at a time. Powers of two, SIDE at least."""

    queries: int
    keys: int


def is_ours(layer: Layer) -> bool:
    """Whether our kernel computes it, and is faster than PyTorch's."""
    return (
        max(layer.key_width, layer.value_width) <= MOST_WIDTH
        and layer.keys <= MOST_KEYS
        and layer.rows * layer.heads * layer.queries * layer.keys <= MOST_SCORES.get(layer.itemsize, 0)
    )


def tile(layer: Layer, multiprocessors: int) -> Tile:
    """The fewest queries of which there is no more than one block per multiprocessor, else the most, whose blocks have
    all that a query needs in one warp. All keys, if they fit."""
    heads, keys = layer.rows * layer.heads, padded(layer.keys)
    few = (n for n in QUERIES if heads * ceil(layer.queries / n) <= multiprocessors)
    key_bytes = 2 * layer.itemsize * padded(max(layer.key_width, layer.value_width))
    if keys > min(BYTES_AT_ONCE // key_bytes, MOST_AT_ONCE):
        keys = min(BYTES_PER_STEP // key_bytes, MOST_PER_STEP)
    return Tile(min(next(few, QUERIES[-1]), padded(layer.queries)), keys)


def padded(size: int) -> int:
    """The side of a matrix in a tile."""
    return max(SIDE, 1 << (size - 1).bit_length())
