"""Which attention our own kernel computes, and in which tiles. By rule: nothing is measured at a start."""

from __future__ import annotations

from dataclasses import dataclass

MOST_WIDTH = 128  # of a head
MOST_KEYS = 512  # with more, PyTorch's kernels do less for each
MOST_SCORES = 2**22  # of a layer: with more, a device has enough to do in any case
MOST_BYTES = 64 * 2**10  # of the keys and values that a block holds


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
    """What a block of ``warps`` computes: so many queries, with so many keys at a time. Powers of two, 16 at least."""

    queries: int
    keys: int
    warps: int


def tile(layer: Layer) -> Tile | None:
    """None where PyTorch's kernels are as fast or faster."""
    if max(layer.key_width, layer.value_width) > MOST_WIDTH or layer.keys > MOST_KEYS:
        return None
    if layer.rows * layer.heads * layer.queries * layer.keys > MOST_SCORES:
        return None
    held = MOST_BYTES // (layer.itemsize * (_padded(layer.key_width) + _padded(layer.value_width)))
    return Tile(16, min(_padded(layer.keys), held), 4)


def _padded(size: int) -> int:
    """To what the sides of matrices are that tensor cores multiply."""
    return max(16, 1 << (size - 1).bit_length())
