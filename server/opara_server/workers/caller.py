"""A worker's side of a line: requests on their way to the engine, answers on the way back."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from weakref import finalize

from opara_server.serving.errors import InvalidInput, ModelUnavailable, Overloaded, ServingError
from opara_server.serving.rows import Rows
from opara_server.serving.ticket import Done
from opara_server.workers.records import (
    CANCEL,
    COMPLETION,
    HELD,
    RELEASED,
    SUBMISSION,
    TEXT_BYTES,
    error_of,
    most_at_once,
    read,
)
from opara_server.workers.region import PLACES_BYTES, give_pages_back
from opara_server.workers.slots import Slots

log = logging.getLogger(__name__)

ENGINE_GONE = "the server is restarting its engine"


class Caller:
    """``submit``s and ``cancel``s come from one thread. Answers come from another, its own: all that there are at a
    time."""

    def __init__(self, places: memoryview, submissions: int, completions: int, turn: threading.Lock) -> None:
        """The pipes' descriptors are its own. ``turn``: taken while answers are given."""
        self._places = places
        self._submissions = submissions
        finalize(self, os.close, submissions)  # not before the last who may write is gone
        self._slots = Slots(PLACES_BYTES)
        self._most = most_at_once(submissions)
        self._pending: dict[int, _Call] = {}
        self._up = True
        self._turn = turn
        threading.Thread(target=self._serve, args=(completions,), name="opara-replies", daemon=True).start()

    def submit(
        self, queue: RemoteQueue, rows: Rows, deadline: float | None, done: Done, priority: int, timeout_us: int
    ) -> _Call:
        """As Batcher.submit: never blocks; what is wrong goes to ``done``, at once."""
        count = rows.count
        call = _Call(self, queue, count, done)
        if sum(map(len, rows.tensors)) != count * queue.bytes_in:
            return call.refused(InvalidInput(f"the request does not have the bytes of {count} rows"))
        if not self._up:
            return call.refused(ModelUnavailable(ENGINE_GONE))
        place = None
        if self._slots.taken < self._most:
            place = self._slots.take(count * queue.bytes_each + TEXT_BYTES)
        if place is None:
            return call.refused(Overloaded("the memory that requests share with the engine is full"))
        call.place = at = place
        places = self._places
        for tensor in rows.tensors:
            end = at + len(tensor)
            places[at:end] = tensor
            at = end
        self._pending[place] = call
        self._send(place, queue.number, count, inf if deadline is None else deadline, priority, timeout_us)
        if not self._up:  # it went away, and may not have seen this one when it told the others
            self._lose(call)
        return call

    def cancel(self, call: _Call) -> None:
        if self._pending.get(call.place) is call:
            self._send(call.place, CANCEL, 0, inf, 0, 0)

    def _send(self, *fields: float) -> None:
        with suppress(BrokenPipeError):  # the thread that reads tells everyone
            os.write(self._submissions, SUBMISSION.pack(*fields))

    def _serve(self, completions: int) -> None:
        while data := read(completions, COMPLETION):
            with self._turn:
                self._take(data)
        os.close(completions)
        self._up = False  # before looking: who submits looks at it afterwards
        for call in list(self._pending.values()):
            self._lose(call)

    def _take(self, data: bytes) -> None:
        for place, status, length in COMPLETION.iter_unpack(data):
            if status != RELEASED:
                self._complete(self._pending.pop(place), status & ~HELD, length)
            if not status & HELD:
                give_pages_back(self._places, place, self._slots.nbytes(place))
                self._slots.give(place)

    def _complete(self, call: _Call, status: int, length: int) -> None:
        places, at = self._places, call.place
        if status:
            at += call.count * call.queue.bytes_each
            text = bytes(places[at : at + length]).decode(errors="replace")
            call.tell(error_of(status, text))
        else:
            tensors, count = [], call.count
            for row_bytes in call.queue.row_bytes_out:
                end = at + count * row_bytes
                tensors.append(places[at:end])
                at = end
            call.tell(Rows(tuple(tensors), count))

    def _lose(self, call: _Call) -> None:
        if self._pending.pop(call.place, None) is call:  # whoever comes first
            call.tell(ModelUnavailable(ENGINE_GONE))


class _Call:
    """A request that the engine has."""

    __slots__ = ("_caller", "_cancelled", "_done", "count", "place", "queue")

    def __init__(self, caller: Caller, queue: RemoteQueue, count: int, done: Done) -> None:
        self.place = -1
        self.queue = queue
        self.count = count
        self._caller = caller
        self._done = done
        self._cancelled = False

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._caller.cancel(self)

    def refused(self, error: ServingError) -> _Call:
        self.tell(error)
        return self

    def tell(self, outcome: Rows | ServingError) -> None:
        try:
            self._done(outcome)
        except Exception:
            log.exception("a transport failed to take an answer")


@dataclass(frozen=True, slots=True)
class RemoteQueue:
    """The way to one model's batcher. Bytes are of a row: of all inputs, of each output, and of whichever are more."""

    caller: Caller
    number: int
    bytes_in: int
    row_bytes_out: tuple[int, ...]
    bytes_each: int

    def submit(
        self, rows: Rows, deadline: float | None, done: Done, *, priority: int = 0, timeout_us: int = 0
    ) -> _Call:
        """As Batcher.submit."""
        return self.caller.submit(self, rows, deadline, done, priority, timeout_us)
