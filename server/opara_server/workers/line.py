"""The engine's side of one worker: its requests on their way to the batchers, their answers on the way back."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from weakref import ref

from opara_server.observe.metrics import Metrics
from opara_server.serving.errors import ServingError
from opara_server.serving.lanes import DIRECT_BYTES
from opara_server.serving.pins import Pins
from opara_server.serving.rows import Rows
from opara_server.serving.ticket import Ticket
from opara_server.workers.catalogue import Catalogue, Offer
from opara_server.workers.counting import Absorbed
from opara_server.workers.records import (
    ATOMIC_BYTES,
    CANCEL,
    COMPLETION,
    HELD,
    RELEASED,
    SAMPLED,
    STATUS,
    SUBMISSION,
    TEXT_BYTES,
    read,
    read_span,
)
from opara_server.workers.region import PINNED_BYTES, attach

log = logging.getLogger(__name__)

_RECORDS = ATOMIC_BYTES // COMPLETION.size


class Line:
    """``take`` and ``hang_up`` are the desk's thread's; answers come from any."""

    def __init__(self, memory: int, submissions: int, completions: int, pins: Pins, broken: Callable[[], None]) -> None:
        """The pipes' descriptors are its own. ``broken``: whom to tell where ``take`` raises."""
        region = attach(memory)
        self.submissions = submissions
        self.places = region.places
        self.broken = broken
        self._pins, self._kept = pins, pins.keep(region.places[:PINNED_BYTES])
        self.pending: dict[int, _Request] = {}
        self.held: set[_Request] = set()
        self.counts = Absorbed(region.counts)
        self._completions = completions
        self._completed: deque[bytes] = deque()
        self._lock = threading.Lock()  # of writing, so that nobody writes where another pipe was opened meanwhile
        self._up = True

    def take(self, catalogue: Catalogue) -> bool:
        """Submit all that has come. False: the worker is gone. Raises where it is no request: then none of it is."""
        data = read(self.submissions, SUBMISSION)
        if data is None:
            return True
        offers = catalogue.offers()
        for place, model, count, deadline, priority, timeout_us in SUBMISSION.iter_unpack(data):
            if model == CANCEL:
                if (request := self.pending.get(place)) is not None:
                    request.cancel()
            else:
                offer, sampled = offers[model & ~SAMPLED], bool(model & SAMPLED)
                _Request(self, place).submit(offer, count, deadline, priority, timeout_us, sampled)
        return bool(data)

    def parts(self, at: int, count: int, row_bytes: Sequence[int]) -> tuple[memoryview, ...]:
        """Tensors of so many rows, one behind the other."""
        found = []
        for size in row_bytes:
            found.append(self.places[at : at + count * size])
            at += count * size
        return tuple(found)

    def complete(self, place: int, status: int = 0, length: int = 0) -> None:
        """Answered."""
        del self.pending[place]
        self._completed.append(COMPLETION.pack(place, status, length))

    def release(self, request: _Request, place: int) -> None:
        """Of what is complete, but whose rows were read still."""
        self.held.discard(request)
        self._completed.append(COMPLETION.pack(place, RELEASED, 0))
        self.flush()

    def flush(self) -> None:
        """Tell the worker of all that is complete, with one wake-up."""
        completed = self._completed
        while completed:
            records: list[bytes] = []
            with suppress(IndexError):  # others flush, too
                while len(records) < _RECORDS:
                    records.append(completed.popleft())
            with self._lock:
                if self._up:
                    with suppress(BrokenPipeError):  # the desk will see it
                        os.write(self._completions, b"".join(records))

    def absorb(self, metrics: Metrics, catalogue: Catalogue) -> None:
        """What the worker has counted."""
        self.counts.absorb(metrics, catalogue.rows())

    def settle(self, metrics: Metrics, catalogue: Catalogue) -> None:
        """Likewise, for the last time."""
        self.counts.settle(metrics, catalogue.rows())

    def hang_up(self) -> None:
        """Nobody waits for what is in flight: cancel it. The memory stays until the batches that read it are over."""
        for request in list(self.pending.values()):
            request.cancel()
        with self._lock:
            self._up = False
            os.close(self.submissions)
            os.close(self._completions)
        self._pins.release(self._kept)  # after the last request is cancelled: no batch takes rows from there any more


class _Request:
    """One in flight. ``_rows`` until it is answered; its ticket goes with them, or each would keep the other."""

    __slots__ = ("_line", "_place", "_readers", "_rows", "_text_at", "_ticket")

    def __init__(self, line: Line, place: int) -> None:
        self._line = line
        self._place = place
        self._text_at = place
        self._rows: Rows | None = None
        self._ticket: Ticket | None = None
        self._readers: list[ref[memoryview]] = []
        line.pending[place] = self

    def submit(self, offer: Offer, count: int, deadline: float, priority: int, timeout_us: int, sampled: bool) -> None:
        line, at = self._line, self._place
        places = line.places
        self._text_at += count * offer.bytes_each
        into = line.parts(at, count, offer.row_bytes_out) if count * max(offer.row_bytes_out) >= DIRECT_BYTES else ()
        self._rows = rows = Rows(line.parts(at, count, offer.row_bytes), count, into)
        self._ticket = offer.served.batcher.submit(
            rows,
            None if deadline == inf else deadline,
            self.done,
            priority=priority,
            timeout_us=timeout_us,
            span=read_span(places, self._text_at) if sampled else None,
        )
        if self._rows is None:
            self._ticket = None

    def cancel(self) -> None:
        if (ticket := self._ticket) is not None:
            ticket.cancel()

    def done(self, outcome: Rows | ServingError) -> None:
        """The answer takes the place of the request, of which nothing is left to read by then."""
        rows, ticket = self._rows, self._ticket
        self._rows = self._ticket = None
        if isinstance(outcome, ServingError):
            self._fail(outcome, rows, ticket)
            return
        places, at = self._line.places, self._place
        own = rows.into if rows is not None else ()
        for tensor in outcome.tensors:
            end = at + len(tensor)
            if not any(tensor is there for there in own):  # the device has written it
                places[at:end] = tensor
            at = end
        self._line.complete(self._place)

    def _fail(self, error: ServingError, rows: Rows | None, ticket: Ticket | None) -> None:
        """A batch that took rows of it may be reading them still, and what came to their place would be run unchecked.
        So the place is kept until nobody has them any more, unless it is known that no batch took any."""
        text, line = str(error).encode()[:TEXT_BYTES], self._line
        line.places[self._text_at : self._text_at + len(text)] = text
        status = STATUS[type(error)]
        if rows is None or (ticket is not None and not ticket.taken):
            line.complete(self._place, status, len(text))
            return
        line.complete(self._place, status | HELD, len(text))
        views = (tensor for tensor in rows.tensors if isinstance(tensor, memoryview))
        self._readers = [ref(view, self._released) for view in views]
        line.held.add(self)

    def _released(self, reader: ref[memoryview]) -> None:
        self._readers.remove(reader)
        if not self._readers:
            self._line.release(self, self._place)
