"""Which bytes of a region are whose: blocks of powers of two, the lowest first."""

from __future__ import annotations

import threading
from heapq import heappop, heappush

_LEAST = 11  # log2 of the smallest block, in bytes: that of a small request and an error's text


class Slots:
    """Hands out blocks of ``size`` bytes (a power of two), below ``near`` where there is room. Any thread.

    A block that comes back is kept as it is for the next request like it, at the cost of a heap's ``pop``; only when
    there is none that fits are larger ones halved, and only when that fails are neighbours joined again: at once where
    there is no room else, now and then where there is some beyond ``near``. A page that was never used takes no memory:
    what a block is larger than its request costs addresses alone.
    """

    def __init__(self, size: int, near: int) -> None:
        self._size, self._near = size, near
        self._top = size.bit_length() - 1
        assert size == 1 << self._top >= 1 << _LEAST
        self._lock = threading.Lock()
        self._free: list[list[int]] = [[] for _ in range(self._top + 1)]  # heaps of offsets, by log2 of their size
        self._free[self._top].append(0)
        self._taken: dict[int, int] = {}  # log2 of the size, by offset
        self._returned = 0  # blocks, since neighbours were joined
        self._parts = 1  # free ones, when they were

    @property
    def taken(self) -> int:
        """How many blocks."""
        return len(self._taken)

    def nbytes(self, offset: int) -> int:
        """Of a block that is taken."""
        return 1 << self._taken[offset]

    def take(self, nbytes: int) -> int | None:
        """The offset of as many bytes; None where there is no room."""
        order = max((nbytes - 1).bit_length(), _LEAST)
        if order > self._top:
            return None
        with self._lock:
            free = self._free[order]
            if (free and free[0] < self._near) or self._found(order):
                offset = heappop(free)
                self._taken[offset] = order
                return offset
            return None

    def give(self, offset: int) -> None:
        """Back what ``take`` gave."""
        with self._lock:
            heappush(self._free[self._taken.pop(offset)], offset)
            self._returned += 1

    def _found(self, order: int) -> bool:
        """Whether there is room, which is then a free block of ``order``, and the lowest of these."""
        if self._have(order, self._near):
            return True
        if self._returned > self._parts:  # so joining takes no longer than what led to it
            self._join()
            if self._have(order, self._near):
                return True
        if self._have(order, self._size):
            return True
        self._join()
        return self._have(order, self._size)

    def _have(self, order: int, below: int) -> bool:
        """Whether there is a free block of ``order`` that begins below, once the smallest larger one is halved until
        there is."""
        for above in range(order, self._top + 1):
            free = self._free[above]
            if free and free[0] < below:
                break
        else:
            return False
        if above > order:
            offset = heappop(free)
            for half in range(above - 1, order - 1, -1):
                heappush(self._free[half], offset + (1 << half))
            heappush(self._free[order], offset)
        return True

    def _join(self) -> None:
        """Neighbours that were one block are one again."""
        for order in range(_LEAST, self._top):
            free = set(self._free[order])
            pairs = [offset for offset in free if not offset & (1 << order) and offset + (1 << order) in free]
            self._free[order + 1] += pairs
            free.difference_update(pairs, [offset + (1 << order) for offset in pairs])
            self._free[order][:] = sorted(free)
        self._returned, self._parts = 0, sum(map(len, self._free))
