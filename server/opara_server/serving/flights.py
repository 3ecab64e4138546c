"""Batches in the air: begun on a device, not yet answered. A thread waits for each and answers it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from opara_server.observe.model_metrics import ModelMetrics
from opara_server.observe.tracing import BatchSpan, Moments, Sampled, Tracer
from opara_server.serving.batcher import Batch, Batcher
from opara_server.serving.errors import InternalError
from opara_server.serving.lanes import Lane, Lanes, Run
from opara_server.serving.turns import Share

log = logging.getLogger(__name__)

_AHEAD = 2  # batches that keep a device busy: one runs, the next is copied; a third pays while another is answered
BRIEF_S = 0.005  # for which calls are not handled: Python lets a thread run as long while others wait


@dataclass(frozen=True, slots=True)
class Worker:
    """One model at work: where its batches come from, where they run, who is told, and its part of the time."""

    name: str
    batcher: Batcher
    lanes: Lanes
    metrics: ModelMetrics
    share: Share = field(default_factory=Share)
    tracer: Tracer | None = None

    def has_room(self, in_the_air: int) -> bool:
        """Whether another batch may join so many: where it could only wait for the device, it waits for more rows."""
        return in_the_air < self.lanes.count and (in_the_air < _AHEAD or self.batcher.full)

    @property
    def brief(self) -> bool:
        """Whether the next batch takes less than BRIEF_S, as far as is known, on whatever thread runs it."""
        bucket = self.batcher.next_bucket
        return self.lanes.anywhere(bucket) and self.batcher.expects(bucket) <= BRIEF_S


@dataclass(slots=True)  # not frozen, as Rows: every batch makes one, and a Landed
class Flight:
    """A batch in the air. ``charged_s``: what its model has been charged for it so far."""

    worker: Worker
    lane: Lane
    run: Run
    charged_s: float


@dataclass(slots=True)
class Landed:
    """What is left for the executor to do. ``seconds``: what the batch took of the device's time."""

    flight: Flight
    seconds: float
    failed: bool


class Flights:
    """Batches of all models that share a device, which end in the order in which they began.

    All calls from the executor's thread; ``landed`` is called from the one that answers.
    """

    def __init__(self, landed: Callable[[], None]) -> None:
        self._tell = landed
        self._begun: SimpleQueue[Flight | None] = SimpleQueue()
        self._landed: deque[Landed] = deque()
        self._thread = threading.Thread(target=self._answer, name="opara-answers", daemon=True)
        self.count = 0  # in the air

    def start(self) -> None:
        self._thread.start()

    def add(self, flight: Flight) -> None:
        self.count += 1
        self._begun.put(flight)

    def next_landed(self) -> Landed | None:
        """One that has been answered since; each once."""
        if not self._landed:
            return None
        self.count -= 1
        return self._landed.popleft()

    def close(self) -> None:
        """Answer what is in the air, and end the thread."""
        self._begun.put(None)
        self._thread.join()

    def _answer(self) -> None:
        while (flight := self._begun.get()) is not None:
            self._landed.append(land(flight))
            self._tell()
            del flight


def land(flight: Flight) -> Landed:
    """Wait for a batch and answer it. Any thread."""
    worker, batch, begin = flight.worker, flight.run.batch, time.monotonic()
    try:
        parts, timing = flight.lane.end(flight.run)
        sampled = () if worker.tracer is None else _sampled(batch)
        moments = flight.run.moments(time.monotonic()) if sampled else None
        worker.batcher.ran(batch.bucket, timing.total_s, timing.replay_s)
        worker.metrics.ran(batch.bucket, batch.rows, timing.copy_in_s, timing.replay_s, timing.copy_out_s)
        worker.batcher.answer(batch, parts)
        if moments is not None:
            _tell(worker, batch, sampled, moments)
    except Exception:  # noqa: BLE001 - the edge of a batch: fail logs it, whatever it is
        fail(worker, batch)
        return Landed(flight, time.monotonic() - begin, failed=True)
    return Landed(flight, timing.total_s, failed=False)


def _sampled(batch: Batch) -> tuple[Sampled, ...]:
    return tuple(
        Sampled(piece.ticket.span, None if piece.start else piece.ticket.arrived)
        for piece in batch.pieces
        if piece.ticket.span is not None
    )


def _tell(worker: Worker, batch: Batch, sampled: tuple[Sampled, ...], moments: Moments | None) -> None:
    """``moments``: None of a batch that failed."""
    assert worker.tracer is not None
    ended = time.monotonic() if moments is None else moments.copy_out[1]
    span = BatchSpan(worker.name, batch.bucket, batch.rows, len(batch.pieces), sampled, batch.taken, ended, moments)
    worker.tracer.batch(span)
    if moments is not None:
        worker.metrics.sampled(span)


def fail(worker: Worker, batch: Batch) -> None:
    """In an exception handler: the log has the traceback, the clients its reference."""
    error = InternalError()
    if worker.tracer is not None and (sampled := _sampled(batch)):
        _tell(worker, batch, sampled, None)
    log.exception(
        "a batch failed",
        extra={"model": worker.name, "requests": len(batch.pieces), "reference": error.reference},
    )
    worker.batcher.fail(batch, error)
