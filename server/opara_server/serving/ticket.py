"""What a request is while it is worked on, and what a batch is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Protocol

from opara_server.observe.tracing import SpanContext
from opara_server.serving.errors import ServingError
from opara_server.serving.rows import Rows

Done = Callable[[Rows | ServingError], None]
"""Takes the answer: called exactly once, from the thread that answers batches, from submit's own or from cancel's. The
tensors of an answer may be views of buffers that a later batch overwrites: they hold until the call returns."""


class Canceller(Protocol):
    def cancel(self, ticket: Ticket) -> None: ...


class Ticket:
    """One submitted request. The batcher's lock guards what changes; ``parts`` belongs to the thread that answers.

    Every request makes one: what only some need is set where they need it.
    """

    __slots__ = (
        "_batcher",
        "arrived",
        "deadline",
        "done",
        "due",
        "level",
        "parts",
        "rows",
        "settled",
        "span",
        "start_by",
        "suspect_at",
        "taken",
    )

    due: float  # when it stops waiting for a fuller batch; set where there is a delay
    level: int  # index of its level of priority; set once it is queued
    parts: list[tuple[bytes, ...]]  # answers so far; set once it is split

    def __init__(
        self,
        batcher: Canceller,
        rows: Rows,
        deadline: float | None,
        done: Done,
        arrived: float,
        span: SpanContext | None = None,
    ) -> None:
        self._batcher = batcher
        self.rows = rows
        self.deadline = inf if deadline is None else deadline
        self.done = done
        self.arrived = arrived
        self.start_by = inf  # when its time in the queue is over
        self.suspect_at = inf  # from then on it may be late: no earlier, so that few have to be looked at closely
        self.taken = 0  # rows that batches have taken so far
        self.settled = False
        self.span = span  # None unless it is sampled

    @property
    def left(self) -> int:
        return self.rows.count - self.taken

    def cancel(self) -> None:
        """Free its place in the queue and call done(Cancelled()), unless it is answered already. Any thread."""
        self._batcher.cancel(self)


@dataclass(slots=True)  # not frozen, as Rows
class Piece:
    """Rows start .. start + count of one request: all of it, unless it was split."""

    ticket: Ticket
    start: int
    count: int


@dataclass(slots=True)
class Batch:
    """What one replay runs: ``rows`` real rows, packed in the order of ``pieces``, padded to ``bucket``. ``taken``:
    when, on time.monotonic()."""

    pieces: tuple[Piece, ...]
    rows: int
    bucket: int
    taken: float = 0.0


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
