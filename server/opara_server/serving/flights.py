"""Batches in the air: begun on a device, not yet answered. A thread waits for each and answers it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from opara_server.observe.metrics import ModelMetrics
from opara_server.serving.batcher import Batch, Batcher
from opara_server.serving.errors import InternalError
from opara_server.serving.lanes import Lane, Lanes, Run
from opara_server.serving.turns import Share

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Worker:
    """One model at work: where its batches come from, where they run, who is told, and its part of the time."""

    name: str
    batcher: Batcher
    lanes: Lanes
    metrics: ModelMetrics
    share: Share = field(default_factory=Share)


@dataclass(frozen=True, slots=True)
class Flight:
    """A batch in the air. ``charged_s``: what its model has been charged for it so far."""

    worker: Worker
    lane: Lane
    run: Run
    charged_s: float


@dataclass(frozen=True, slots=True)
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
        worker.batcher.ran(batch.bucket, timing.total_s, timing.replay_s)
        worker.metrics.ran(batch.bucket, batch.rows, timing.copy_in_s, timing.replay_s, timing.copy_out_s)
        worker.batcher.answer(batch, parts)
    except Exception:  # noqa: BLE001 - the edge of a batch: fail logs it, whatever it is
        fail(worker, batch)
        return Landed(flight, time.monotonic() - begin, failed=True)
    return Landed(flight, timing.total_s, failed=False)


def fail(worker: Worker, batch: Batch) -> None:
    """In an exception handler: the log has the traceback, the clients its reference."""
    error = InternalError()
    log.exception(
        "a batch failed",
        extra={"model": worker.name, "requests": len(batch.pieces), "reference": error.reference},
    )
    worker.batcher.fail(batch, error)
