"""A worker's side of a line: requests on their way to the engine, answers on the way back."""

from __future__ import annotations

import logging
import os
import select
import threading
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from weakref import finalize

from opara_server.observe.tracing import SpanContext
from opara_server.rpc.turn import Turn
from opara_server.serving.errors import InvalidInput, ModelUnavailable, Overloaded, ServingError
from opara_server.serving.rows import Rows
from opara_server.serving.ticket import Done
from opara_server.workers.records import (
    ATOMIC_BYTES,
    CANCEL,
    COMPLETION,
    HELD,
    RELEASED,
    SAMPLED,
    SUBMISSION,
    TEXT_BYTES,
    error_of,
    most_at_once,
    read,
    write_span,
)
from opara_server.workers.region import PINNED_BYTES, PLACES_BYTES, give_pages_back
from opara_server.workers.slots import Slots

log = logging.getLogger(__name__)

ENGINE_GONE = "the server is restarting its engine"

_TOGETHER = ATOMIC_BYTES // SUBMISSION.size  # of what is submitted, the most that is written at once


class Caller:
    """``submit``s and ``cancel``s come from one thread, that which serves. If it does chores, then what it submits goes
    to the engine, and answers are given, whenever it has handled all calls that there were. While it sleeps, and where
    it does none, answers are given by a thread of the caller's own."""

    def __init__(self, places: memoryview, submissions: int, completions: int, turn: Turn) -> None:
        """The pipes' descriptors are its own."""
        self._places = places
        self._submissions = submissions
        finalize(self, os.close, submissions)  # not before the last who may write is gone
        self._slots = Slots(PLACES_BYTES, near=PINNED_BYTES)
        self._most = most_at_once(submissions, completions)
        self._pending: dict[int, _Call] = {}
        self._up = True
        self._turn = turn
        self._completions = completions
        os.set_blocking(completions, False)
        self._outgoing: list[bytes] = []
        if turn.attended:
            turn.add(self._work)
        threading.Thread(target=self._serve, name="opara-replies", daemon=True).start()

    def submit(
        self,
        queue: RemoteQueue,
        rows: Rows,
        deadline: float | None,
        done: Done,
        priority: int,
        timeout_us: int,
        span: SpanContext | None,
    ) -> _Call:
        """As Batcher.submit: never blocks; what is wrong goes to ``done``, at once."""
        count = rows.count
        call = _Call(self, queue, count, done)
        if sum(map(len, rows.tensors)) != count * queue.bytes_in:
            return call.refused(InvalidInput(f"the request does not have the bytes of {count} rows"))
        if not self._up:
            return call.refused(ModelUnavailable(ENGINE_GONE))
        if self._slots.taken >= self._most:
            return call.refused(Overloaded(f"too many requests are in flight: a worker may have {self._most}"))
        place = self._slots.take(count * queue.bytes_each + TEXT_BYTES)
        if place is None:
            return call.refused(Overloaded("the memory that requests share with the engine is full"))
        call.place = at = place
        places = self._places
        for tensor in rows.tensors:
            end = at + len(tensor)
            places[at:end] = tensor
            at = end
        number = queue.number
        if span is not None:
            write_span(places, place + count * queue.bytes_each, span)
            number |= SAMPLED
        self._pending[place] = call
        self._send(place, number, count, inf if deadline is None else deadline, priority, timeout_us)
        if not self._up:  # it went away, and may not have seen this one when it told the others
            self._lose(call)
        return call

    def cancel(self, call: _Call) -> None:
        if self._pending.get(call.place) is call:
            self._send(call.place, CANCEL, 0, inf, 0, 0)

    def _send(self, *fields: float) -> None:
        outgoing = self._outgoing
        outgoing.append(SUBMISSION.pack(*fields))
        if len(outgoing) == _TOGETHER or not self._turn.attended:
            self._flush()

    def _flush(self) -> None:
        records = b"".join(self._outgoing)
        self._outgoing.clear()
        with suppress(BrokenPipeError):  # the thread that reads tells everyone
            os.write(self._submissions, records)

    def _work(self) -> bool:
        """The thread that serves has handled all calls that there were."""
        if self._outgoing:
            self._flush()
        data = read(self._completions, COMPLETION) if self._pending else None
        if data:
            self._take(data)
        return bool(data)  # at the end of the pipe the other thread does the rest

    def _serve(self) -> None:
        waiting = select.poll()
        waiting.register(self._completions, select.POLLIN)
        data: bytes | None = None
        while data != b"":
            waiting.poll()
            with self._turn:
                data = read(self._completions, COMPLETION)
                if data:
                    self._take(data)
        with self._turn:
            self._turn.remove(self._work)
            os.close(self._completions)
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
        self,
        rows: Rows,
        deadline: float | None,
        done: Done,
        *,
        priority: int = 0,
        timeout_us: int = 0,
        span: SpanContext | None = None,
    ) -> _Call:
        """As Batcher.submit."""
        return self.caller.submit(self, rows, deadline, done, priority, timeout_us, span)
