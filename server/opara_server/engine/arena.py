"""One block of memory for many buffers: those that are never needed at the same time may lie in the same bytes.

Greedy by size (Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020; arXiv:2001.03288),
with a partial order of the buffers' users in place of their times. No torch in here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ALIGNMENT = 512  # bytes, as PyTorch's allocator for CUDA has it; kernels may count on it
PATIENCE = 20  # placements


@dataclass(frozen=True)
class Arena:
    """A block of ``size`` bytes, and where in it each buffer begins: multiples of ALIGNMENT."""

    size: int = 0
    offsets: Mapping[int, int] = field(default_factory=dict)


NO_ARENA = Arena()


def rounded(size: int) -> int:
    """What a buffer of ``size`` bytes takes up."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def pack(sizes: Mapping[int, int], apart: Mapping[int, int], at_least: int = 0) -> Arena:
    """Place buffers of ``sizes`` bytes. ``apart[b]``: a bit set of the buffers that b may share bytes with, symmetric.

    Three orders of placing are tried: by size, and by size times how many, or how many bytes, are in the way. From the
    best on, the buffer on top is placed earlier and earlier, until PATIENCE times in a row that has been no better, or
    the block is as small as it can be, should the caller know: ``at_least``. Optimal packing is NP-hard; this is
    O(n log n) per buffer for n buffers.
    """
    blocks = {buffer: rounded(size) for buffer, size in sizes.items()}
    everything = sum(1 << buffer for buffer in sizes)
    in_the_way = {buffer: bits(everything & ~apart[buffer]) for buffer in sizes}
    orders = (
        sorted(sizes, key=lambda buffer: -blocks[buffer]),
        sorted(sizes, key=lambda buffer: -blocks[buffer] * len(in_the_way[buffer])),
        sorted(sizes, key=lambda buffer: -blocks[buffer] * sum(blocks[other] for other in in_the_way[buffer])),
    )
    best, order = min(((_place(o, blocks, in_the_way), o) for o in orders), key=lambda pair: pair[0].size)
    latest, left = best, PATIENCE
    while left > 0 and best.size > at_least:
        place = order.index(max(order, key=lambda buffer: latest.offsets[buffer] + blocks[buffer]))
        order.insert(place // 2, order.pop(place))
        latest = _place(order, blocks, in_the_way)
        left = PATIENCE if latest.size < best.size else left - 1
        best = min(best, latest, key=lambda arena: arena.size)
    return best


def _place(order: Sequence[int], sizes: Mapping[int, int], in_the_way: Mapping[int, Sequence[int]]) -> Arena:
    """Each buffer in turn at the lowest place that those placed before it leave."""
    placed: dict[int, tuple[int, int]] = {}
    size = 0
    for buffer in order:
        wanted = sizes[buffer]
        offset = 0
        for begin, end in sorted(filter(None, map(placed.get, in_the_way[buffer]))):
            if offset + wanted <= begin:
                break
            offset = max(offset, end)
        placed[buffer] = offset, offset + wanted
        size = max(size, offset + wanted)
    return Arena(size, {buffer: begin for buffer, (begin, _) in placed.items()})


def bits(numbers: int) -> list[int]:
    first = max(0, (numbers & -numbers).bit_length() - 1)  # neighbours of a buffer have numbers near to its own
    return [number for number, digit in enumerate(f"{numbers >> first:b}"[::-1], first) if digit == "1"]
