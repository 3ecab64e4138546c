"""What bounds a model's batches: sizes that are set, and a time that is measured."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Limits:
    """``buckets`` ascending; the rest counts rows."""

    buckets: tuple[int, ...]
    max_rows: int  # of one request
    max_queue_rows: int
    max_queue_delay_s: float = 0.0

    @property
    def largest(self) -> int:
        return self.buckets[-1]

    def bucket(self, rows: int) -> int:
        """The smallest bucket that holds ``rows``."""
        return next(b for b in self.buckets if b >= rows)


class Pace:
    """The fastest run seen of each bucket: a lower bound, so that one slow run never makes later requests late."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._fastest: dict[int, float] = {}

    def ran(self, bucket: int, seconds: float) -> None:
        """A batch took ``seconds`` from copy in to copy out."""
        self._fastest[bucket] = min(self._fastest.get(bucket, inf), seconds)

    def shortest(self, rows: int) -> float:
        """Seconds that ``rows`` take at least, in one batch or several; 0 for what has not been run."""
        whole, rest = divmod(rows, self._limits.largest)
        return whole * self._seen(self._limits.largest) + (self._seen(self._limits.bucket(rest)) if rest else 0.0)

    def _seen(self, bucket: int) -> float:
        return self._fastest.get(bucket, 0.0)
