"""How fast a model's buckets run: the fastest seen of each, and what follows from them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

_HOST_SHARE = 0.9  # a split must save a tenth: every batch also costs the host, which the device does not measure
_REMEMBERED = 4096


class Pace:
    """The fastest run seen of each bucket: a lower bound, so that one slow run never makes later requests late.

    Of a bucket that has not run nothing is known: it might take no time. Seconds everywhere.
    """

    def __init__(self, buckets: Sequence[int]) -> None:
        self._buckets = tuple(buckets)
        self._whole = [0.0] * len(self._buckets)  # from copy in to copy out
        self._replay = [0.0] * len(self._buckets)
        self._first: dict[int, int] = {}
        self._shortest: dict[int, float] = {}
        self._derive()

    def ran(self, bucket: int, seconds: float, replay_s: float | None = None) -> None:
        """A batch took ``seconds`` from copy in to copy out, and kept the device from others for ``replay_s``
        (None: for all of them)."""
        index = bisect_left(self._buckets, bucket)
        replay_s = seconds if replay_s is None else replay_s
        whole, replay = self._whole[index], self._replay[index]
        if whole and whole <= seconds and replay <= replay_s:
            return
        self._whole[index] = min(whole or seconds, seconds)
        self._replay[index] = min(replay or replay_s, replay_s)
        self._derive()

    def _derive(self) -> None:
        self._first.clear()
        self._shortest.clear()
        self._known = all(self._whole)
        self._from = list(accumulate(reversed(self._whole), min))[::-1]  # the least of this bucket and larger ones
        self._row_s = min(replay / size for replay, size in zip(self._replay, self._buckets, strict=True))
        self.shortest_replay = min(self._replay)
        self.longest = max(self._whole)

    def bucket(self, rows: int) -> int:
        """The smallest that holds them."""
        return self._buckets[bisect_left(self._buckets, rows)]

    def replay(self, bucket: int) -> float:
        """At least so long a batch of that bucket keeps the device from others."""
        return self._replay[bisect_left(self._buckets, bucket)]

    def busy(self, rows: int) -> float:
        """At least so long ``rows`` rows keep the device from others, in whatever batches, with whatever others."""
        return rows * self._row_s

    def shortest(self, rows: int) -> float:
        """At least so long it takes from the start of the first batch to the answer of a request that is left with
        ``rows``, alone or with others."""
        known = self._shortest.get(rows)
        if known is None:
            if rows > self._buckets[-1] or self.first(rows) < rows:
                known = max(self._from[0], self.busy(rows))
            else:
                known = self._from[bisect_left(self._buckets, rows)]
            if len(self._shortest) < _REMEMBERED:
                self._shortest[rows] = known
        return known

    def together(self, rows: int) -> float:
        """At least so long a batch of ``rows`` takes."""
        return self._whole[bisect_left(self._buckets, rows)]

    def first(self, rows: int) -> int:
        """How many of ``rows``, which fit the largest bucket, to run first: all of them, unless filling smaller
        buckets one after the other measured faster than the padding of the one that holds all."""
        known = self._first.get(rows)
        if known is None:
            known = self._first_of(rows) if self._known else rows
            if len(self._first) < _REMEMBERED:
                self._first[rows] = known
        return known

    def parted(self, rows: int, of: int) -> bool:
        """Whether ``rows`` of the rows that wait are better run without the others, which follow."""
        return self._known and self.together(rows) + self._split(of - rows)[0] < _HOST_SHARE * self.together(of)

    def _first_of(self, rows: int) -> int:
        seconds, first = self._split(rows)
        return first if seconds < _HOST_SHARE * self.together(rows) else rows

    def _split(self, rows: int) -> tuple[float, int]:
        """The least seconds for ``rows`` in one batch or several, and the size of the first: of each smaller bucket
        as many as there are rows to fill, then the rest in the same way."""
        best = self.together(rows), rows
        for bucket, seconds in zip(self._buckets, self._whole, strict=True):
            if bucket >= rows:
                break
            times, rest = divmod(rows, bucket)
            total = times * seconds + (self._split(rest)[0] if rest else 0.0)
            if total <= best[0]:  # of equals the larger bucket, whose rows are answered first
                best = total, bucket
        return best
