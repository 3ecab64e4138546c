"""Which bytes of a region are whose: blocks of powers of two, first those that were used before."""

from __future__ import annotations

import threading

_LEAST = 11  # log2 of the smallest block, in bytes: that of a small request and an error's text


class Slots:
    """Hands out blocks of ``size`` bytes (a power of two). Any thread.

    A block that comes back is kept as it is for the next request like it, at the cost of a list's ``pop``; only when
    there is none that fits are larger ones halved, and only when that fails are neighbours joined again. A page that
    was never used takes no memory: what a block is larger than its request costs addresses alone.
    """

    def __init__(self, size: int) -> None:
        self._top = size.bit_length() - 1
        assert size == 1 << self._top >= 1 << _LEAST
        self._lock = threading.Lock()
        self._free: list[list[int]] = [[] for _ in range(self._top + 1)]  # offsets, by log2 of their size
        self._free[self._top].append(0)
        self._taken: dict[int, int] = {}  # log2 of the size, by offset

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
            if not free and not self._split(order):
                self._join()
                if not free and not self._split(order):
                    return None
            offset = free.pop()
            self._taken[offset] = order
            return offset

    def give(self, offset: int) -> None:
        """Back what ``take`` gave."""
        with self._lock:
            self._free[self._taken.pop(offset)].append(offset)

    def _split(self, order: int) -> bool:
        """Halve the smallest larger block until one of ``order`` is there, if there is any. The lowest half is used
        first."""
        above = next((o for o in range(order + 1, self._top + 1) if self._free[o]), None)
        if above is None:
            return False
        offset = self._free[above].pop()
        for half in range(above - 1, order - 1, -1):
            self._free[half].append(offset + (1 << half))
        self._free[order].append(offset)
        return True

    def _join(self) -> None:
        """Neighbours that were one block are one again."""
        for order in range(_LEAST, self._top):
            free = set(self._free[order])
            pairs = [offset for offset in free if not offset & (1 << order) and offset + (1 << order) in free]
            self._free[order + 1] += pairs
            free.difference_update(pairs, [offset + (1 << order) for offset in pairs])
            self._free[order] = sorted(free, reverse=True)
