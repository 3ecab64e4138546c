"""What workers count of requests, in memory that the engine reads: nothing is lost with a worker, and nothing is late.

A row per model, of whole numbers of 8 bytes each: requests by code, then the latencies of those that were executed, by
bucket, and their sum in nanoseconds. Only its worker writes a row; the engine adds to its metrics what is new.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

from opara_server.observe.metrics import REASONS, REQUEST_SECONDS, UNKNOWN_MODEL, Metrics
from opara_server.serving.errors import Status
from opara_server.workers.region import COUNTS_BYTES

CODES = tuple(dict.fromkeys((*map(str, Status), *REASONS)))
_COLUMN = {code: column for column, code in enumerate(CODES)}
_BUCKETS = len(REQUEST_SECONDS) + 1
_LATENCY = len(CODES)
_SUM = _LATENCY + _BUCKETS
_ROW = 32  # numbers
assert _SUM < _ROW
UNKNOWN = 0  # the row of what is no model
MOST_ROWS = COUNTS_BYTES // (8 * _ROW)


class WorkerCounts:
    """In a worker. What it counts while there is no engine goes to the next one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # answers come from several threads
        self._rows: Mapping[str, int] = {}
        self._table: memoryview | None = None
        self._missed: Counter[tuple[str, str]] = Counter()
        self._bounds = list(REQUEST_SECONDS)

    def attach(self, counts: memoryview, rows: Mapping[str, int]) -> None:
        """From now on count here; ``rows``: by model."""
        with self._lock:
            self._rows = rows
            self._table = counts.cast("Q")
            missed, self._missed = self._missed, Counter()
        for (model, code), count in missed.items():
            for _ in range(count):
                self.request(model, code, 0.0)

    def detach(self) -> None:
        """The engine is gone."""
        with self._lock:
            self._table = None

    def request(self, model: str, code: str, seconds: float) -> None:
        """As Metrics.request."""
        with self._lock:
            table = self._table
            row = self._rows.get(model, UNKNOWN) * _ROW
            if table is None:
                self._missed[model if row else UNKNOWN_MODEL, code] += 1
                return
            table[row + _COLUMN[code]] += 1
            if code not in REASONS:
                table[row + _LATENCY + bisect_left(self._bounds, seconds)] += 1
                table[row + _SUM] += int(seconds * 1e9)


class Absorbed:
    """In the engine: how much of one worker's counts its metrics have."""

    def __init__(self, counts: memoryview) -> None:
        self._table = counts.cast("Q")
        self._seen: dict[int, list[int]] = {}

    def absorb(self, metrics: Metrics, models: Mapping[str, int]) -> None:
        """Add what is new. ``models``: their rows."""
        for model, row in ((UNKNOWN_MODEL, UNKNOWN), *models.items()):
            values = self._table[row * _ROW : (row + 1) * _ROW].tolist()
            seen = self._seen.setdefault(row, [0] * _ROW)
            if values == seen:
                continue
            self._seen[row] = values
            new = [value - before for value, before in zip(values, seen, strict=True)]
            codes = {code: new[column] for column, code in enumerate(CODES) if new[column]}
            metrics.add_requests(model, codes, new[_LATENCY:_SUM], new[_SUM] / 1e9)
