"""What workers count of requests, in memory that the engine reads: nothing is lost with a worker, and nothing is late.

A row per model, of whole numbers of 8 bytes each: requests by code, then the latencies of those that were executed, by
bucket, their sum in nanoseconds, how many requests have come, and by bucket the last exemplar: when (Unix time) and how
long in nanoseconds, and both halves of its trace's id. Only its worker writes a row; the engine adds to its metrics
what is new. A request counts as come once its message has been read, before anything is done about it: what has come
and is not answered when its worker dies was lost with it.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

from opara_server.observe.metrics import REASONS, REQUEST_SECONDS, UNKNOWN_MODEL, Metrics
from opara_server.serving.errors import Status
from opara_server.workers.region import COUNTS_BYTES

CODES = tuple(dict.fromkeys((*map(str, Status), *REASONS)))
_BUCKETS = len(REQUEST_SECONDS) + 1
_LATENCY = len(CODES)
_SUM = _LATENCY + _BUCKETS
_RECEIVED = _SUM + 1  # behind the codes, in which order they are read: what was answered has come before
_EXEMPLARS = _RECEIVED + 1
_EXEMPLAR = 4  # numbers
_ROW = 128  # numbers
assert _EXEMPLARS + _BUCKETS * _EXEMPLAR <= _ROW
_HALF = (1 << 64) - 1
RECEIVED = "received"  # beside the codes
_COLUMN = {code: column for column, code in enumerate(CODES)} | {RECEIVED: _RECEIVED}
_NOT_EXECUTED = {RECEIVED, *REASONS}
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
            self._rows, self._table = rows, counts.cast("Q")
            missed, self._missed = self._missed, Counter()
            for (model, what), number in missed.items():
                self._count(model, what, number, 0.0)

    def detach(self) -> None:
        """The engine is gone. What has come and is not answered yet is taken along to the next one."""
        with self._lock:
            table, self._table = self._table, None
            if table is None:
                return
            models = {row: model for model, row in self._rows.items()} | {UNKNOWN: UNKNOWN_MODEL}
            for row, model in models.items():
                self._missed[model, RECEIVED] += _open(table[row * _ROW : (row + 1) * _ROW].tolist())

    def receive(self, model: str) -> None:
        """As Metrics.receive."""
        with self._lock:
            self._count(model, RECEIVED, 1, 0.0)

    def refuse(self, model: str, code: str, seconds: float) -> None:
        """As Metrics.refuse."""
        with self._lock:
            self._count(model, RECEIVED, 1, 0.0)
            self._count(model, code, 1, seconds)

    def request(self, model: str, code: str, seconds: float) -> None:
        """As Metrics.request."""
        with self._lock:
            self._count(model, code, 1, seconds)

    def _count(self, model: str, what: str, number: int, seconds: float) -> None:
        """Under the lock."""
        table = self._table
        row = self._rows.get(model, UNKNOWN) * _ROW
        if table is None:
            self._missed[model if row else UNKNOWN_MODEL, what] += number
            return
        table[row + _COLUMN[what]] += number
        if what not in _NOT_EXECUTED:
            table[row + _LATENCY + bisect_left(self._bounds, seconds)] += number
            table[row + _SUM] += int(seconds * 1e9)

    def exemplar(self, model: str, code: str, seconds: float, trace_id: int) -> None:
        """As Metrics.exemplar. Lost while there is no engine."""
        with self._lock:
            table, row = self._table, self._rows.get(model, UNKNOWN) * _ROW
            if table is None or code in REASONS:
                return
            at = row + _EXEMPLARS + _EXEMPLAR * bisect_left(self._bounds, seconds)
            table[at] = 0  # whoever reads it meanwhile sees that it is none
            table[at + 1] = int(seconds * 1e9)
            table[at + 2], table[at + 3] = trace_id >> 64, trace_id & _HALF
            table[at] = time.time_ns()


class Absorbed:
    """In the engine: how much of one worker's counts its metrics have."""

    def __init__(self, counts: memoryview) -> None:
        self._table = counts.cast("Q")
        self._seen: dict[int, list[int]] = {}

    def absorb(self, metrics: Metrics, models: Mapping[str, int]) -> None:
        """Add what is new. ``models``: their rows."""
        for model, row in (*models.items(), (UNKNOWN_MODEL, UNKNOWN)):
            values = self._table[row * _ROW : (row + 1) * _ROW].tolist()
            seen = self._seen.setdefault(row, [0] * _ROW)
            if values == seen:
                continue
            self._seen[row] = values
            new = [value - before for value, before in zip(values, seen, strict=True)]
            codes = {code: new[column] for column, code in enumerate(CODES) if new[column]}
            metrics.add_requests(model, new[_RECEIVED], codes, new[_LATENCY:_SUM], new[_SUM] / 1e9)
            for at in range(_EXEMPLARS, _EXEMPLARS + _BUCKETS * _EXEMPLAR, _EXEMPLAR):
                when_ns, ns, high, low = values[at : at + _EXEMPLAR]
                if when_ns and new[at] and self._table[row * _ROW + at] == when_ns:  # not written meanwhile
                    metrics.exemplar(model, Status.OK, ns / 1e9, high << 64 | low, when_ns / 1e9)

    def settle(self, metrics: Metrics, models: Mapping[str, int]) -> None:
        """The worker counts no more: add what is new, and what was lost with it."""
        self.absorb(metrics, models)
        for model, row in (*models.items(), (UNKNOWN_MODEL, UNKNOWN)):
            if lost := _open(self._seen[row]):
                metrics.add_lost(model, lost)


def _open(row: Sequence[int]) -> int:
    """Requests that have come and are not answered."""
    return row[_RECEIVED] - sum(row[: len(CODES)])
