"""Hot calls on the completion queue: no event loop, no task; an answer leaves from the thread that has it."""

from __future__ import annotations

import threading
import time
from collections import deque

import grpc

from opara_server.rpc import cq_core as core
from opara_server.rpc.backlog import Backlog
from opara_server.rpc.errors import Failure
from opara_server.rpc.inference import Hot
from opara_server.serving.models import Cancellable

_NO_REQUEST = Failure(grpc.StatusCode.UNIMPLEMENTED, "a unary call has exactly one request")
_SHUTTING_DOWN = Failure(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
_UNWATCHED_S = 0.005


class Unwatched:
    """Unary calls whose end is not watched yet. Most are answered first, and their end comes with the answer: one
    operation and one event less. The others are watched after _UNWATCHED_S."""

    def __init__(self) -> None:
        self._calls: set[UnaryCall] = set()
        self._since: deque[tuple[float, UnaryCall]] = deque()  # on time.monotonic(); of those answered since, too

    def add(self, call: UnaryCall) -> None:
        """On the thread that serves, as is ``watch``."""
        self._calls.add(call)
        self._since.append((time.monotonic(), call))

    def take(self, call: UnaryCall) -> bool:
        """Whether it is for whoever asks to watch its end; true once per call. Any thread."""
        try:
            self._calls.remove(call)
        except KeyError:
            return False
        return True

    def watch(self) -> float | None:
        """Those that have been there for long; in how many seconds to look again, None where there are no others."""
        while self._since:
            since, call = self._since[0]
            if call in self._calls:
                left_s = since + _UNWATCHED_S - time.monotonic()
                if left_s > 0:
                    return left_s
                if self.take(call):
                    call.watch()
            self._since.popleft()
        return None


class UnaryCall:
    """One call of a hot unary method. Every event comes on the thread that serves, ``_reply`` on any."""

    __slots__ = ("_answered", "_call", "_deadline", "_ended", "_hot", "_metadata", "_ticket", "_unwatched")

    def __init__(self, arrival: core.Event, hot: Hot, unwatched: Unwatched) -> None:
        self._call = arrival.call
        self._deadline = core.deadline_of(arrival)
        self._metadata = core.metadata_of(arrival)
        self._hot = hot
        self._ticket: Cancellable | None = None
        self._answered = self._ended = False
        self._unwatched = unwatched
        unwatched.add(self)
        core.receive(self._call, self._received)

    def watch(self) -> None:
        """Cancel what nobody waits for any more. Once."""
        core.watch_end(self._call, self._over)

    def invocation_metadata(self) -> core.Metadata:
        """What the client sent with the call."""
        return self._metadata

    def _received(self, event: core.Event) -> None:
        message = core.message_of(event)
        if message is None:
            if not self._ended:
                self._reply(_NO_REQUEST)
            return
        ticket = self._hot(message, self._deadline, self._reply, self)
        if self._ended and ticket is not None:
            ticket.cancel()
        self._ticket = ticket
        if self._answered:
            self._ticket = None  # which has this call: without a cycle both go at once

    def _reply(self, outcome: bytes | Failure) -> None:
        watch = self._unwatched.take(self)
        if isinstance(outcome, Failure):
            core.send_status(self._call, outcome.number, outcome.text, _sent, watch=watch)
        else:
            core.send_only(self._call, outcome, _sent, watch=watch)
        self._answered = True
        self._ticket = None

    def _over(self, event: core.Event) -> None:
        self._ended = True
        if self._ticket is not None and core.was_cancelled(event):
            self._ticket.cancel()
        self._ticket = None


class StreamCall:
    """One call of a hot stream: ``in_flight`` requests at most are worked on, answers leave as they come."""

    def __init__(
        self, arrival: core.Event, hot: Hot, in_flight: int, backlog: Backlog, open_ones: set[StreamCall]
    ) -> None:
        """It is among ``open_ones`` until it has ended."""
        self._call = arrival.call
        self._open_ones = open_ones
        self._deadline = core.deadline_of(arrival)
        self._metadata = core.metadata_of(arrival)
        self._hot = hot
        self._most = in_flight
        self._lock = threading.Lock()  # of all below
        self._backlog = backlog
        self._waiting: deque[bytes] = deque()  # answers
        self._waiting_bytes = self._counted_bytes = 0  # theirs, and as the backlog has them
        self._tickets: dict[int, Cancellable | None] = {}  # of those not answered; None: not known yet
        self._number = 0  # of requests read
        self._open = 0  # of them, those whose answers are not sent
        self._sending = self._first_sent = self._receiving = self._no_more = self._closing = self._ended = False
        core.watch_end(self._call, self._over)
        self._receiving = True
        core.receive(self._call, self._received)
        open_ones.add(self)  # from now on it may be closed

    def close(self) -> None:
        """Reads no further, answers what it has read and ends with UNAVAILABLE. Any thread."""
        with self._lock:
            self._closing = True
        self._go_on()

    def invocation_metadata(self) -> core.Metadata:
        """What the client sent with the call."""
        return self._metadata

    def _received(self, event: core.Event) -> None:
        message = core.message_of(event)
        with self._lock:
            self._receiving = False
            if self._ended:
                return
            if message is None:
                self._no_more = True
            else:
                number = self._number = self._number + 1
                self._open += 1
                self._tickets[number] = None
        if message is not None:
            ticket = self._hot(message, self._deadline, lambda outcome: self._reply(number, outcome), self)
            with self._lock:
                if number in self._tickets:
                    self._tickets[number] = ticket
        self._go_on()

    def _reply(self, number: int, outcome: bytes | Failure) -> None:
        assert isinstance(outcome, bytes), "what goes wrong in a stream is a message of its own"
        with self._lock:
            self._tickets.pop(number, None)
            self._waiting.append(outcome)
            self._waiting_bytes += len(outcome)
        self._go_on()

    def _sent(self, event: core.Event) -> None:
        with self._lock:
            self._sending = False
            self._open -= 1
            if not event.success:
                self._ended = True
        self._go_on()

    def _go_on(self) -> None:
        """Whatever may be done next, by whoever comes."""
        with self._lock:
            if self._ended:
                self._forget()
                return
            first = not self._first_sent
            message = None
            if not self._sending and self._waiting:
                message = self._waiting.popleft()
                self._waiting_bytes -= len(message)
                self._sending = self._first_sent = True
            self._count()
            over = not self._open and (self._no_more or self._closing)
            read = not (self._receiving or self._no_more or self._closing) and self._open < self._backlog.in_flight(
                self._most
            )
            self._receiving |= read
            self._ended |= over
        if message is not None:
            core.send_message(self._call, message, self._sent, first=first)
        if read:
            core.receive(self._call, self._received)
        if over and self._no_more:
            core.send_status(self._call, core.OK, "", _sent, first=first)
        elif over:
            core.send_status(self._call, _SHUTTING_DOWN.number, _SHUTTING_DOWN.text, _sent, first=first)

    def _forget(self) -> None:
        """Nobody takes what waits. Under the lock."""
        self._waiting.clear()
        self._waiting_bytes = 0
        self._count()

    def _count(self) -> None:
        """What has left at once was never counted. Under the lock."""
        if self._waiting_bytes != self._counted_bytes:
            self._backlog.change(self._waiting_bytes - self._counted_bytes)
            self._counted_bytes = self._waiting_bytes

    def _over(self, _event: core.Event) -> None:
        self._open_ones.discard(self)
        with self._lock:
            self._ended = True
            self._forget()
            tickets = list(self._tickets.values())
            self._tickets.clear()
        for ticket in tickets:
            if ticket is not None:
                ticket.cancel()


def _sent(_event: core.Event) -> None:
    """Nobody waits for it."""
