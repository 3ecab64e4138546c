"""Requests of one model wait here, and become batches. No torch and no asyncio: any transport can submit.

Natural batching: the executor takes a batch whenever the device is idle, so requests wait for each other only while
the device is busy, or up to ``max_queue_delay_s`` where that is set. Every request is answered exactly once, and
received = answered + failed + cancelled + refused + pending at any moment.

State by lifetime: the model's is in Batcher, a request's in its Ticket, a batch's in Batch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf

from opara_server.engine.spec import TensorSpec
from opara_server.observe.metrics import ModelMetrics
from opara_server.serving.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    ModelUnavailable,
    Overloaded,
    ServingError,
    Status,
)
from opara_server.serving.limits import Limits, Pace
from opara_server.serving.rows import Rows, check_rows

__all__ = ["Batch", "Batcher", "Counts", "Done", "Piece", "Rows", "Ticket"]

log = logging.getLogger(__name__)

Done = Callable[[Rows | ServingError], None]
"""Takes the answer: called exactly once, from the executor's thread, from submit's own or from cancel's."""


class Ticket:
    """One submitted request. The batcher's lock guards what changes; ``parts`` belongs to the executor's thread."""

    __slots__ = ("_batcher", "arrived", "deadline", "done", "due", "parts", "rows", "settled", "taken", "turn")

    def __init__(self, batcher: Batcher, rows: Rows, deadline: float | None, done: Done, arrived: float) -> None:
        self._batcher = batcher
        self.rows = rows
        self.deadline = inf if deadline is None else deadline
        self.done = done
        self.arrived = arrived
        self.turn = arrived  # its place among the heads of all queues
        self.due = arrived  # when it stops waiting for a fuller batch
        self.taken = 0  # rows that batches have taken so far
        self.parts: list[tuple[bytes, ...]] = []
        self.settled = False

    @property
    def left(self) -> int:
        return self.rows.count - self.taken

    def cancel(self) -> None:
        """Free its place in the queue and call done(Cancelled()), unless it is answered already. Any thread."""
        self._batcher._cancel(self)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows start .. start + count of one request: all of it, unless it is larger than the largest bucket."""

    ticket: Ticket
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one replay runs: ``rows`` real rows, packed in the order of ``pieces``, padded to ``bucket``."""

    pieces: tuple[Piece, ...]
    rows: int
    bucket: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests since the start. ``pending`` are queued or in flight."""

    received: int
    answered: int
    failed: int
    cancelled: int
    refused: int

    @property
    def pending(self) -> int:
        return self.received - self.answered - self.failed - self.cancelled - self.refused


class Batcher:
    """The bounded queue of one model. ``submit`` and ``cancel`` are for every thread, the rest is the executor's."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        limits: Limits,
        metrics: ModelMetrics,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self._inputs = tuple(inputs)
        self._metrics = metrics
        self._wake = wake  # tells the executor that something is queued
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: OrderedDict[Ticket, None] = OrderedDict()
        self._queued_rows = 0
        self._received = 0
        self._settled: Counter[Status] = Counter()
        self._closed = False
        self._pace = Pace(limits)
        metrics.watch_queue(lambda: self._queued_rows)

    def submit(self, rows: Rows, deadline: float | None, done: Done) -> Ticket:
        """Queue a request. ``deadline``: on time.monotonic(). Never blocks; what is wrong goes to ``done``."""
        ticket = Ticket(self, rows, deadline, done, self._clock())
        invalid: ServingError | None = None
        try:
            check_rows(rows, self._inputs, self.limits.max_rows)
        except InvalidInput as error:
            invalid = error
        with self._lock:
            self._received += 1
            refusal = self._refusal(ticket, invalid)
            if refusal:
                self._settle(ticket, refusal.status)
            else:
                ticket.due = self._due(ticket)
                self._queue[ticket] = None
                self._queued_rows += rows.count
        if refusal:
            self._deliver([(ticket, refusal)])
        else:
            self._wake()
        return ticket

    def _refusal(self, ticket: Ticket, invalid: ServingError | None) -> ServingError | None:
        if self._closed:
            return ModelUnavailable("the model serves no more")
        if invalid:
            return invalid
        if ticket.deadline <= ticket.arrived:
            return DeadlineExceeded()
        if self._queued_rows + ticket.rows.count > self.limits.max_queue_rows:
            return Overloaded(f"the queue is full: {self._queued_rows} of {self.limits.max_queue_rows} rows wait")
        return None

    def _due(self, ticket: Ticket) -> float:
        """A request that has no time to wait for others does not."""
        due = ticket.arrived + self.limits.max_queue_delay_s
        return due if due + self._pace.shortest(self.limits.largest) <= ticket.deadline else ticket.arrived

    def _cancel(self, ticket: Ticket) -> None:
        with self._lock:
            if ticket.settled:
                return
            self._settle(ticket, Status.CANCELLED)
        self._deliver([(ticket, Cancelled())])

    def close(self, *, drop_queued: bool) -> None:
        """Take no more requests. What is queued is still run, unless ``drop_queued``. Any thread, any time."""
        with self._lock:
            self._closed = True
            dropped = list(self._queue) if drop_queued else []
            for ticket in dropped:
                self._settle(ticket, Status.UNAVAILABLE)
        self._deliver((ticket, ModelUnavailable("the model serves no more")) for ticket in dropped)

    @property
    def counts(self) -> Counts:
        with self._lock:
            received, settled = self._received, self._settled.copy()
        answered, failed, cancelled = (settled.pop(s, 0) for s in (Status.OK, Status.INTERNAL, Status.CANCELLED))
        return Counts(received, answered, failed, cancelled, refused=settled.total())

    def ready(self, now: float) -> tuple[float, float] | None:
        """When a batch may be taken, and the turn of the queue's head, both on the clock; None when nothing waits."""
        with self._lock:
            if not self._queue:
                return None
            turn = next(iter(self._queue)).turn
            if not self.limits.max_queue_delay_s or self._closed or self._queued_rows >= self.limits.largest:
                return now, turn
            return min(ticket.due for ticket in self._queue), turn  # fewer tickets than the largest bucket has rows

    def take(self) -> Batch | None:
        """The next batch, first come first packed; requests that cannot be answered in time are refused instead."""
        now = self._clock()
        with self._lock:
            pieces, late = self._pack(now)
        self._deliver((ticket, DeadlineExceeded()) for ticket in late)
        if not pieces:
            return None
        rows = sum(piece.count for piece in pieces)
        for piece in pieces:
            if piece.start == 0:
                self._metrics.queue_seconds.observe(now - piece.ticket.arrived)
        return Batch(tuple(pieces), rows, self.limits.bucket(rows))

    def _pack(self, now: float) -> tuple[list[Piece], list[Ticket]]:
        """Whole requests in order. Only one larger than the largest bucket is split, and fills what room is left."""
        pieces: list[Piece] = []
        late: list[Ticket] = []
        used, tightest = 0, inf
        while self._queue and used < self.limits.largest:
            ticket = next(iter(self._queue))
            if now + self._pace.shortest(ticket.left) > ticket.deadline:
                self._settle(ticket, Status.DEADLINE_EXCEEDED)
                late.append(ticket)
                continue
            count = min(ticket.left, self.limits.largest - used)
            if count < ticket.left <= self.limits.largest:
                break
            tightest = min(tightest, ticket.deadline)
            if pieces and now + self._pace.shortest(used + count) > tightest:
                break  # together in a larger bucket, one of them would be late
            pieces.append(Piece(ticket, ticket.taken, count))
            used += count
            self._queued_rows -= count
            ticket.taken += count
            ticket.turn = now  # a split request lets other models run between its pieces
            if not ticket.left:
                del self._queue[ticket]
        return pieces, late

    def ran(self, bucket: int, seconds: float) -> None:
        """Note how long a batch of ``bucket`` took from copy in to copy out."""
        with self._lock:
            self._pace.ran(bucket, seconds)

    def answer(self, batch: Batch, parts: Sequence[tuple[bytes, ...]]) -> None:
        """``parts``: per piece of the batch one raw buffer per output of the model."""
        whole = []
        with self._lock:
            for piece, part in zip(batch.pieces, parts, strict=True):
                ticket = piece.ticket
                ticket.parts.append(part)
                if not ticket.settled and piece.start + piece.count == ticket.rows.count:
                    self._settle(ticket, Status.OK)
                    whole.append(ticket)
        self._deliver((ticket, _joined(ticket)) for ticket in whole)

    def fail(self, batch: Batch, error: ServingError) -> None:
        """Answer every request of the batch with ``error``; what is left of a split one is not run."""
        with self._lock:
            failed = [piece.ticket for piece in batch.pieces if not piece.ticket.settled]
            for ticket in failed:
                self._settle(ticket, error.status)
        self._deliver((ticket, error) for ticket in failed)

    def _settle(self, ticket: Ticket, status: Status) -> None:
        """Under the lock: the one point where a request's outcome is decided."""
        ticket.settled = True
        self._settled[status] += 1
        if ticket in self._queue:
            del self._queue[ticket]
            self._queued_rows -= ticket.left

    def _deliver(self, outcomes: Iterable[tuple[Ticket, Rows | ServingError]]) -> None:
        """Never under the lock: ``done`` may submit again, or take a lock of its own."""
        for ticket, outcome in outcomes:
            try:
                ticket.done(outcome)
            except Exception:
                log.exception("a transport failed to take an answer")


def _joined(ticket: Ticket) -> Rows:
    """The answer to a request from those to its pieces, which one thread ran in order."""
    return Rows(tuple(b"".join(pieces) for pieces in zip(*ticket.parts, strict=True)), ticket.rows.count)
