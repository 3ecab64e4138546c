"""One block of memory for many buffers: those that are never needed at the same time may lie in the same bytes.

Greedy by size (Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020; arXiv:2001.03288),
with a partial order of the buffers' users in place of their times. No torch in here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ALIGNMENT = 512  # bytes, as PyTorch's allocator for CUDA has it; kernels may count on it


@dataclass(frozen=True)
class Arena:
    """A block of ``size`` bytes, and where in it each buffer begins: multiples of ALIGNMENT."""

    size: int = 0
    offsets: Mapping[int, int] = field(default_factory=dict)


NO_ARENA = Arena()


def rounded(size: int) -> int:
    """What a buffer of ``size`` bytes takes up."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def pack(sizes: Mapping[int, int], apart: Mapping[int, int]) -> Arena:
    """Place buffers of ``sizes`` bytes. ``apart[b]``: a bit set of the buffers that b may share bytes with, symmetric.

    Two orders of placing are tried and the smaller block is kept: by size, and by size times how many are in the way.
    Optimal packing is NP-hard; O(n log n) per buffer for n buffers.
    """
    blocks = {buffer: rounded(size) for buffer, size in sizes.items()}
    everything = sum(1 << buffer for buffer in sizes)
    in_the_way = {buffer: _bits(everything & ~apart[buffer]) for buffer in sizes}
    orders = (
        sorted(sizes, key=lambda buffer: -blocks[buffer]),
        sorted(sizes, key=lambda buffer: -blocks[buffer] * len(in_the_way[buffer])),
    )
    return min((_place(order, blocks, in_the_way) for order in orders), key=lambda arena: arena.size)


def _place(order: Sequence[int], sizes: Mapping[int, int], in_the_way: Mapping[int, Sequence[int]]) -> Arena:
    """Each buffer in turn at the lowest place that those placed before it leave."""
    offsets: dict[int, int] = {}
    size = 0
    for buffer in order:
        offset = 0
        for begin, end in sorted((offsets[b], offsets[b] + sizes[b]) for b in in_the_way[buffer] if b in offsets):
            if offset + sizes[buffer] <= begin:
                break
            offset = max(offset, end)
        offsets[buffer] = offset
        size = max(size, offset + sizes[buffer])
    return Arena(size, offsets)


def _bits(numbers: int) -> list[int]:
    first = max(0, (numbers & -numbers).bit_length() - 1)  # neighbours of a buffer have numbers near to its own
    return [number for number, digit in enumerate(f"{numbers >> first:b}"[::-1], first) if digit == "1"]
