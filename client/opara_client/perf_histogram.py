"""A histogram of durations whose buckets widen with the value, as HdrHistogram's do.

Up to 2 ** BITS every whole nanosecond has a bucket of its own. Above, each power of two is cut into 2 ** (BITS - 1)
equal buckets, so a bucket's width is at most ERROR of any value in it: percentiles are exact to that, however long the
tail. Only buckets that were hit are kept. Histograms of several processes add up to that of all their values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil

BITS = 11
ERROR = 2.0 ** (1 - BITS)


@dataclass(slots=True)
class Histogram:
    """``counts``: by bucket. ``total``: the exact sum of all values, in ns. ``largest``: the exact maximum, in ns."""

    counts: Counter[int] = field(default_factory=Counter)
    total: int = 0
    largest: int = 0

    def record(self, nanoseconds: int) -> None:
        """Adds one value; a negative one, which only rounding could make, counts as 0."""
        value = max(0, nanoseconds)
        shift = max(0, value.bit_length() - BITS)
        self.counts[(shift << (BITS - 1)) + (value >> shift)] += 1
        self.total += value
        self.largest = max(self.largest, value)

    @property
    def count(self) -> int:
        return self.counts.total()

    @property
    def mean(self) -> float:
        """Exact, in ns; 0 of no values."""
        return self.total / max(1, self.count)

    def buckets(self) -> list[tuple[int, int]]:
        """(the largest value in ns that falls into it, how many did) of every bucket that was hit, ascending."""
        return [(min(_upper(index), self.largest), count) for index, count in sorted(self.counts.items())]

    def percentile(self, percent: float) -> int:
        """The value in ns that ``percent`` of the values do not exceed (nearest rank), at most ERROR too high; 0 of no
        values."""
        rank = max(1, ceil(round(self.count * percent / 100, 6)))  # 99.9 % of 41,000 is not 40,959.00000000001
        buckets = self.buckets()
        reached = accumulate(count for _, count in buckets)
        return next((upper for (upper, _), so_far in zip(buckets, reached, strict=True) if so_far >= rank), 0)


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """What one histogram of all their values would be."""
    result = Histogram()
    for histogram in histograms:
        result.counts.update(histogram.counts)
        result.total += histogram.total
        result.largest = max(result.largest, histogram.largest)
    return result


def _upper(index: int) -> int:
    """The largest value of a bucket: ``index`` is shift * 2 ** (BITS - 1) + mantissa, the mantissa below 2 ** BITS."""
    half = 1 << (BITS - 1)
    shift = max(0, index // half - 1)
    mantissa = index - shift * half
    return ((mantissa + 1) << shift) - 1
