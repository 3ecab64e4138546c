"""What a replica is to the capacity model: how long its batches take, and what goes on around them.

Figures of one replica, measured; all else follows. It batches as the server does (natural batching, buckets padded up,
a bounded queue), whose rules ``batches`` repeats; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from opara_client.wording import counted

HOST_SHARE = 0.9  # the server splits a batch only where that saves a tenth
QUEUE_PER_ROW = 64  # the server's default: so many of its largest batches may wait


@dataclass(frozen=True)
class ReplicaModel:
    """Of one replica. Times in seconds.

    ``batch_s``: by bucket, how long a batch keeps the device from the next one. ``front_s``: of the thread that takes
    calls, for each request, beside the device. ``base_s``: of a lone request, what is neither: the network, the
    balancer, both ends. ``rows``: of each request. ``queue_rows``: more may not wait; 0: the server's default.
    ``delay_s``: how long an idle device waits for a fuller batch. ``variation``: of batches of one bucket, the standard
    deviation of their times over the mean.
    """

    batch_s: Mapping[int, float]
    front_s: float = 0.0
    base_s: float = 0.0
    rows: int = 1
    queue_rows: int = 0
    delay_s: float = 0.0
    variation: float = 0.0

    def __post_init__(self) -> None:
        if not self.batch_s or min(self.batch_s) < 1 or min(self.batch_s.values()) <= 0:
            raise ValueError("batch times: at least one batch size, sizes and times above 0")
        if not 1 <= self.rows <= max(self.batch_s):
            raise ValueError(f"{counted(self.rows, 'row')} a request: of 1 to {max(self.batch_s)}, the largest batch")
        if min(self.front_s, self.base_s, self.delay_s, self.variation, self.queue_rows) < 0:
            raise ValueError("times, variation and queue must not be negative")
        if 0 < self.queue_rows < self.rows:
            raise ValueError(f"a queue of {counted(self.queue_rows, 'row')} holds no request of {self.rows}")

    @cached_property
    def buckets(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(sorted(self.batch_s))

    @property
    def queue_requests(self) -> int:
        """How many requests may wait."""
        return (self.queue_rows or QUEUE_PER_ROW * self.buckets[-1]) // self.rows

    @cached_property
    def batches(self) -> tuple[tuple[int, float], ...]:
        """By how many requests wait, from 1 up to the largest bucket's rows: (how many the next takes, its seconds)."""
        return tuple(self._batch(waiting) for waiting in range(1, ceil(self.buckets[-1] / self.rows) + 1))

    def _batch(self, waiting: int) -> tuple[int, float]:
        """Whole requests in order, as many as the server finds worth while."""
        rows, together = self.rows, min(waiting * self.rows, self.buckets[-1])
        room = max(self._bucket(self._first(together)), self._bucket(rows))
        taken = min(room // rows, waiting)
        if taken < waiting and not self._parted(taken * rows, together):
            taken = together // rows
        return taken, self.batch_s[self._bucket(taken * rows)]

    def _parted(self, rows: int, of: int) -> bool:
        """Whether ``rows`` are better run without the others, which follow."""
        follow_s, _ = self._split(of - rows)
        return self.batch_s[self._bucket(rows)] + follow_s < HOST_SHARE * self.batch_s[self._bucket(of)]

    def _first(self, rows: int) -> int:
        """How many of ``rows``, which fit the largest bucket, the server runs first: all, unless filling smaller
        buckets one after the other is faster by a tenth than the padding of the one that holds all."""
        seconds, first = self._split(rows)
        return first if seconds < HOST_SHARE * self.batch_s[self._bucket(rows)] else rows

    def _split(self, rows: int) -> tuple[float, int]:
        best = self.batch_s[self._bucket(rows)], rows
        for bucket in self.buckets:
            if bucket >= rows:
                break
            times, rest = divmod(rows, bucket)
            total = times * self.batch_s[bucket] + (self._split(rest)[0] if rest else 0.0)
            if total <= best[0]:
                best = total, bucket
        return best

    def _bucket(self, rows: int) -> int:
        return next(bucket for bucket in self.buckets if bucket >= rows)

    @property
    def requests_per_s(self) -> float:
        """At most, with as much waiting as there is room for: of the device, and of the thread that takes calls."""
        taken, seconds = self.batches[-1]
        return min(taken / seconds, 1 / self.front_s if self.front_s else float("inf"))

    @property
    def lone_s(self) -> float:
        """Latency of a request that meets no other."""
        return self.base_s + self.front_s + self.delay_s + self.batches[0][1]
