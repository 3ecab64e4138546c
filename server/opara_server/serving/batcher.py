"""Requests of one model wait here, and become batches. No torch and no asyncio: any transport can submit.

Natural batching: the executor takes a batch whenever the device is idle, so requests wait for each other only while
the device is busy, or up to ``max_queue_delay_s`` where that is set, unless a preferred size is reached before. Every
request is answered exactly once, and received = answered + failed + cancelled + refused + pending at any moment.

State by lifetime: the model's is in Batcher and Waiting, a request's in its Ticket, a batch's in Batch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from math import inf

from opara_server.engine.spec import TensorSpec
from opara_server.observe.model_metrics import ModelMetrics
from opara_server.observe.tracing import SpanContext
from opara_server.serving.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    ModelUnavailable,
    Overloaded,
    ServingError,
)
from opara_server.serving.limits import Limits
from opara_server.serving.pace import Pace
from opara_server.serving.packing import Packing
from opara_server.serving.rows import RowChecks, Rows
from opara_server.serving.ticket import Batch, Counts, Done, Piece, Ticket
from opara_server.serving.turns import InFlight
from opara_server.serving.waiting import Waiting

__all__ = ["Batch", "Batcher", "Counts", "Done", "Piece", "Rows", "Ticket"]

log = logging.getLogger(__name__)


class Batcher:
    """The bounded queue of one model. ``submit`` and ``cancel`` are for every thread, the rest is the executor's.

    ``wake`` is called when a batch may be taken that could not be before; ``in_flight``: what all models that share
    the device have running on it.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        limits: Limits,
        metrics: ModelMetrics,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        in_flight: InFlight | None = None,
    ) -> None:
        self.limits = limits
        self._check = RowChecks(inputs, limits.max_rows).check
        self._metrics = metrics
        self._wake = wake
        self._clock = clock
        self._in_flight = in_flight or InFlight()
        self._delay_s = limits.max_queue_delay_s
        self._timeout_s = limits.queue_timeout_s
        self._default_level = limits.default_level - 1
        self._several = bool(limits.level_rows)  # levels
        self._most = limits.max_queue_rows
        self._enough = min((*limits.preferred_sizes, limits.largest))  # rows that end the delay
        self._lock = threading.Lock()
        self._pace = Pace(limits.buckets)
        self._waiting = Waiting(limits, self._pace)
        self._packing: Packing | None = None  # what ``take`` is at work on
        self._due = inf  # when the first request stops waiting for others; kept where there is a delay
        self._closed = False
        self._received = self._answered = self._failed = self._cancelled = self._refused = 0
        self.delivered: Callable[[], None] = _nobody_waits  # called once those of a batch have their answers

    def submit(
        self,
        rows: Rows,
        deadline: float | None,
        done: Done,
        *,
        priority: int = 0,
        timeout_us: int = 0,
        span: SpanContext | None = None,
    ) -> Ticket:
        """Queue a request. Never blocks; what is wrong goes to ``done``, at once.

        ``deadline``: on time.monotonic(); by then it must be answered. ``priority``: 1 is the highest, 0 the model's
        default. ``timeout_us``: µs after which it must have left the queue; 0: the model's own limit. One that cannot
        be met by the fastest runs seen of what is in flight and ahead of it is refused, and so not executed. ``span``:
        None unless it is sampled.
        """
        ticket = Ticket(self, rows, deadline, done, self._clock(), span)
        refusal: ServingError | None = None
        waiting, wake = self._waiting, False
        try:
            self._check(rows)
            if (priority or timeout_us) and min(priority, timeout_us) < 0:
                raise InvalidInput(f"priority and timeout must not be negative, got {priority} and {timeout_us}")
        except InvalidInput as error:
            refusal = error.with_traceback(None)  # which has this frame: a circle that would keep the rows for a while
        with self._lock:
            self._received += 1
            level = self.limits.level(priority) - 1 if priority else self._default_level
            if self._closed:
                refusal = ModelUnavailable("the model serves no more")
            elif refusal is None and (self._several or deadline is not None or waiting.rows + rows.count > self._most):
                refusal = self._refusal(ticket, level)
            if refusal is None:
                wake = not waiting.rows or waiting.rows < self.limits.largest <= waiting.rows + rows.count
                waiting.add(ticket, level)
                if timeout_us or self._timeout_s < inf:
                    ticket.start_by = ticket.arrived + self.limits.timeout_s(timeout_us)
                    ticket.suspect_at = min(ticket.suspect_at, ticket.start_by)
                if self._delay_s:
                    wake = self._ends_delay(ticket) or wake
            else:
                self._refused += 1
                ticket.settled = True
        if refusal is not None:
            self._deliver([(ticket, refusal)])
        elif wake:
            self._wake()
        return ticket

    def _refusal(self, ticket: Ticket, level: int) -> ServingError | None:
        """Under the lock. Also notes from when on the request may be late."""
        waiting, limits, count = self._waiting, self.limits, ticket.rows.count
        if waiting.rows + count > limits.max_queue_rows:
            return Overloaded(f"the queue is full: {waiting.rows} of {limits.max_queue_rows} rows wait")
        if limits.level_rows and waiting.levels[level].rows + count > limits.level_rows[level]:
            rows, most = waiting.levels[level].rows, limits.level_rows[level]
            return Overloaded(f"the queue of priority {level + 1} is full: {rows} of {most} rows wait")
        if ticket.deadline < inf:
            now, shortest = ticket.arrived, self._pace.shortest(count)
            answered = max(now + shortest, max(now, self._in_flight.until) + waiting.busy(level, count))
            if ticket.deadline <= now or ticket.deadline < answered:
                return DeadlineExceeded()
            ticket.suspect_at = ticket.deadline - shortest
        return None

    def _ends_delay(self, ticket: Ticket) -> bool:
        """Under the lock: when does it stop waiting for others? One that has no time to wait does not. Whether a batch
        may be taken earlier than without it."""
        due = ticket.arrived + self._delay_s
        in_time = due + self._pace.shortest(self.limits.largest) <= ticket.deadline and due <= ticket.start_by
        ticket.due = due if in_time else ticket.arrived
        sooner = ticket.due < self._due
        self._due = min(self._due, ticket.due)
        return sooner or self._waiting.rows >= self._enough

    def cancel(self, ticket: Ticket) -> None:
        """See Ticket.cancel."""
        with self._lock:
            if ticket.settled:
                return
            ticket.settled = True
            self._cancelled += 1
            self._waiting.drop(ticket)
            self._note_due()
        self._deliver([(ticket, Cancelled())])

    def close(self, *, drop_queued: bool) -> None:
        """Take no more requests. What is queued is still run, unless ``drop_queued``. Any thread, any time."""
        with self._lock:
            self._closed = True
            dropped = self._waiting.tickets() if drop_queued else []
            for ticket in dropped:
                ticket.settled = True
                self._waiting.drop(ticket)
            self._refused += len(dropped)
        self._deliver([(ticket, ModelUnavailable("the model serves no more")) for ticket in dropped])

    @property
    def counts(self) -> Counts:
        with self._lock:
            return Counts(self._received, self._answered, self._failed, self._cancelled, self._refused)

    def ready(self, now: float) -> float | None:
        """When a batch may be taken, on the clock; None when nothing waits."""
        rows = self._waiting.rows
        if not rows:
            return None
        return now if not self._delay_s or self._closed or rows >= self._enough else self._due

    def take(self) -> Batch | None:
        """The next batch, which is to run now; requests that cannot be answered in time are refused instead."""
        now = self._clock()
        with self._lock:
            if not self._waiting.rows:
                return None
            self._packing = packing = Packing(self._pace, self.limits.largest, self._at_most(now), now)
            self._waiting.take(packing)
            self._note_due()
            bucket = self._pace.bucket(packing.rows)
            if packing.rows:
                self._in_flight.add(now, self._pace.replay(bucket))
            late, packing.late = packing.late, []
            self._refused += len(late)
        if late:
            self._deliver([(ticket, DeadlineExceeded()) for ticket in late])
        if packing.rows:
            self._metrics.waited([now - piece.ticket.arrived for piece in packing.pieces if not piece.start])
        self._packing = None
        return Batch(tuple(packing.pieces), packing.rows, bucket, now) if packing.rows else None

    def abandon(self) -> Batch:
        """After an error in ``take``, for ``fail``: all requests that it met and that wait. The queue begins anew."""
        with self._lock:
            met = [] if self._packing is None else self._packing.undone()
            pieces = tuple(Piece(t, 0, t.rows.count) for t in dict.fromkeys((*met, *self._waiting.tickets())))
            for piece in pieces:
                piece.ticket.taken = piece.count
            self._packing, self._waiting, self._due = None, Waiting(self.limits, self._pace), inf
        return Batch(pieces, sum(piece.count for piece in pieces), self.limits.largest, self._clock())

    def _at_most(self, now: float) -> int:
        """Rows that wait for the next batch: before the delay is over the largest preferred size that is reached."""
        largest, rows = self.limits.largest, self._waiting.rows
        if not self._delay_s or self._closed or rows >= largest or now >= self._due:
            return min(rows, largest)
        return max((size for size in self.limits.preferred_sizes if size <= rows), default=rows)

    def _note_due(self) -> None:
        if self._delay_s and self._waiting.rows < self._enough:
            self._due = min((ticket.due for ticket in self._waiting.tickets()), default=inf)

    def ran(self, bucket: int, seconds: float, replay_s: float | None = None) -> None:
        """A batch of ``bucket`` took ``seconds`` from copy in to copy out; for ``replay_s`` of them (None: for all)
        the device could run no other."""
        with self._lock:
            self._pace.ran(bucket, seconds, replay_s)

    @property
    def waiting_rows(self) -> int:
        return self._waiting.rows

    @property
    def full(self) -> bool:
        """Whether as many rows wait as a batch can have."""
        return self._waiting.rows >= self.limits.largest

    @property
    def next_bucket(self) -> int:
        """That of the next batch, or a larger one."""
        return self._pace.bucket(min(self._waiting.rows, self.limits.largest))

    def expects(self, bucket: int) -> float:
        """Seconds that a batch of ``bucket`` takes at least, from copy in to copy out."""
        return self._pace.together(bucket)

    def answer(self, batch: Batch, parts: Sequence[tuple[bytes | memoryview, ...]]) -> None:
        """``parts``: per piece of the batch one raw buffer per output of the model, which need not outlive the call."""
        answers: list[tuple[Ticket, Rows]] = []
        with self._lock:
            for piece, part in zip(batch.pieces, parts, strict=True):
                ticket, count = piece.ticket, piece.ticket.rows.count
                if ticket.settled:
                    continue
                if piece.count == count:
                    answer = Rows(part, count)
                else:
                    ticket.parts.append(tuple(map(bytes, part)))
                    if piece.start + piece.count < count:
                        continue
                    answer = _joined(ticket)
                ticket.settled = True
                answers.append((ticket, answer))
            self._answered += len(answers)
        self._deliver(answers)

    def fail(self, batch: Batch, error: ServingError) -> None:
        """Answer every request of the batch with ``error``; what is left of a split one is not run."""
        failed = []
        with self._lock:
            for piece in batch.pieces:
                ticket = piece.ticket
                if not ticket.settled:
                    ticket.settled = True
                    self._waiting.drop(ticket)
                    failed.append((ticket, error))
            self._failed += len(failed)
            self._note_due()
        self._deliver(failed)

    def _deliver(self, outcomes: Sequence[tuple[Ticket, Rows | ServingError]]) -> None:
        """Never under the lock: ``done`` may submit again, or take a lock of its own."""
        for ticket, outcome in outcomes:
            try:
                ticket.done(outcome)
            except Exception:
                log.exception("a transport failed to take an answer")
        self.delivered()


def _nobody_waits() -> None:
    """For the end of a batch: its answers are on their way."""


def _joined(ticket: Ticket) -> Rows:
    """The answer to a request from those to its pieces, which one thread ran in order."""
    return Rows(tuple(b"".join(pieces) for pieces in zip(*ticket.parts, strict=True)), ticket.rows.count)
