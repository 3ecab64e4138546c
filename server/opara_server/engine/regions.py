"""Which parts of a storage tensors cover: the channels of a concatenated tensor interleave, yet do not touch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Region:
    """Where a tensor lies in its storage, in elements of ``itemsize`` bytes. ``dims``: (size, stride) of each dimension
    that has more than one place."""

    dims: tuple[tuple[int, int], ...]
    offset: int
    itemsize: int

    @property
    def end(self) -> int:
        return self.offset + sum((size - 1) * stride for size, stride in self.dims) + 1

    @property
    def nbytes(self) -> int:
        return prod(size for size, _ in self.dims) * self.itemsize

    @property
    def gapless(self) -> bool:
        return self.nbytes == (self.end - self.offset) * self.itemsize


def region(tensor: Tensor) -> Region:
    """``tensor`` must have at least one element."""
    dims = [(n, stride) for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if n > 1 and stride > 0]
    return Region(tuple(sorted(dims)), int(tensor.storage_offset()), tensor.element_size())


class Touches:
    """The parts (graph.Parts) that operators touch: per operator by buffer; all of a buffer that is not in there."""

    def __init__(self, regions: Sequence[Mapping[int, frozenset[Region]]]) -> None:
        self._regions = regions

    def apart(self, first: int, second: int, buffer: int) -> bool:
        ones, others = self._regions[first].get(buffer), self._regions[second].get(buffer)
        if ones is None or others is None:
            return False
        return not any(_overlap(one, other) for one in ones for other in others)

    def covers(self, first: int, second: int, buffer: int) -> bool:
        ones, others = self._regions[first].get(buffer), self._regions[second].get(buffer)
        return others is None or (ones is not None and ones <= others)


@cache
def _overlap(one: Region, other: Region) -> bool:
    if one.itemsize != other.itemsize:
        return True
    begin, end = min(one.offset, other.offset), max(one.end, other.end)
    if one.end <= other.offset or other.end <= one.offset:
        return False
    if one.gapless or other.gapless:
        return True
    covered = torch.zeros(end - begin, dtype=torch.bool)
    _elements(covered, one, begin).fill_(True)
    return bool(_elements(covered, other, begin).any())


def _elements(storage: Tensor, part: Region, begin: int) -> Tensor:
    sizes, strides = [n for n, _ in part.dims], [stride for _, stride in part.dims]
    return storage.as_strided(sizes, strides, part.offset - begin)
