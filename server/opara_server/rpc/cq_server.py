"""A server straight on gRPC's completion queue, with the methods of grpc.aio.Server that this project uses.

Hot methods run in the loop of the thread that serves, without an event loop and its tasks; everything else goes to
the same asynchronous servicers that grpc.aio calls, on the event loop that is running.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from opara_server.rpc import cq_core as core
from opara_server.rpc.backlog import Backlog
from opara_server.rpc.busy_poll import BusyPoll
from opara_server.rpc.cq_calls import StreamCall, UnaryCall, Unwatched
from opara_server.rpc.cq_context import CqContext
from opara_server.rpc.edge import Edge
from opara_server.rpc.inference import Hot
from opara_server.rpc.turn import Turn

log = logging.getLogger(__name__)

ARMED = 32  # calls that may arrive before the next look: with 1, PEERS measured 17.5 k instead of 24.6 k requests/s
LATE = 1024  # calls more that are taken when it stops: gRPC cancels those that have come but wait to be taken
_MOST_IN_A_ROW = 64  # events, before chores are done however many more there are


class CqServer:
    """On the event loop that is running."""

    def __init__(
        self,
        edge: Edge,
        unary: Mapping[str, Hot],
        streams: Mapping[str, Hot],
        stream_in_flight: int,
        turn: Turn | None = None,
        backlog: Backlog | None = None,
        busy_poll_s: float = 0.0,
    ) -> None:
        """``unary``, ``streams``: the hot methods, by full path. The others: see open_transport."""
        self._loop = asyncio.get_running_loop()
        self._core = core.Core(edge.options)
        self._credentials = edge.credentials
        self._access = edge.access
        self._unary = {path.encode(): method for path, method in unary.items()}
        self._hot_streams = {path.encode(): method for path, method in streams.items()}
        self._stream_in_flight = stream_in_flight
        self._backlog = backlog or Backlog()
        self._busy_poll = BusyPoll(busy_poll_s)
        self._turn = turn or Turn()
        self._turn.attended = True
        self._handlers: list[grpc.GenericRpcHandler[Any, Any]] = []
        self._unwatched = Unwatched()
        self._streams: set[StreamCall] = set()
        self._streams_closed = False
        self._thread = threading.Thread(target=self._serve, name="opara-grpc", daemon=True)
        self._accepting = self._shut = False
        self._arming = threading.Lock()  # calls are accepted or it shuts down
        self._armed = 0  # calls that may arrive; the thread's own, as is
        self._late = 0  # of LATE, those that may arrive; the thread's own, too, once they are armed
        self._in_a_row = 0  # events since it slept
        self._calls_ended = asyncio.Event()

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler[Any, Any]]) -> None:
        self._handlers += handlers

    def listen(self, address: str) -> int:
        """The port. Raises RuntimeError where the address is taken."""
        port = self._core.listen(address, self._credentials)
        if not port:
            raise RuntimeError(f"cannot listen on {address}")
        return port

    async def start(self) -> None:
        self._core.start()
        self._accepting = True
        self._thread.start()

    def close_streams(self) -> None:
        """For good: hot streams read no further, answer what they have read and end with UNAVAILABLE."""
        self._streams_closed = True
        for stream in self._streams.copy():  # at once, while more may come
            stream.close()

    async def stop(self, grace: float | None) -> None:
        """Take no more calls than have come, give those in flight ``grace`` seconds, then cancel them.

        gRPC answers calls that come after its shutdown with CANCELLED, until clients have heard of it (GOAWAY): only a
        drain delay in which they turn to other servers avoids these.
        """
        if not self._thread.is_alive():
            return
        with self._arming:
            self._accepting = False
        self._late = LATE
        for _ in range(LATE):
            self._core.accept(self._arrived_late)
        self._core.shut_down(self._shut_down)
        try:
            async with asyncio.timeout(grace or 0.0):
                await self._calls_ended.wait()
        except TimeoutError:
            self._core.cancel_all()
            await self._calls_ended.wait()
        await asyncio.to_thread(self._thread.join)
        self._core.destroy()  # not on that thread: a call above may still be under way when the last event has come

    def _serve(self) -> None:
        with self._turn:
            while (event := self._next()) is not None:
                tag = event.tag
                try:
                    tag(event)
                except Exception:
                    log.exception("an event of gRPC's could not be handled")
                event = tag = None
                self._busy_poll.begin()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._calls_ended.set)

    def _next(self) -> core.Event | None:
        """None where there will be none. Chores are done before the thread sleeps, and every so often."""
        while True:
            if self._in_a_row < _MOST_IN_A_ROW:
                self._in_a_row += 1
                event = self._core.next_event(0.0)
                if event is not None:
                    return event
            self._in_a_row = 0
            more = self._turn.work()
            self._arm()  # only now: answers do not wait for it
            wait_s = self._unwatched.watch()
            if more:  # it may have left more to do, and nobody would wake this thread for that
                continue
            if not self._goes_on:
                return None
            if self._busy_poll.goes_on:
                continue
            self._turn.release()
            try:
                event = self._core.next_event(wait_s)
            finally:
                self._turn.acquire()
            if event is not None:
                return event

    @property
    def _goes_on(self) -> bool:
        return not self._shut or self._armed > 0 or self._late > 0

    def _arm(self) -> None:
        with self._arming:
            while self._accepting and self._armed < ARMED:
                self._armed += 1
                self._core.accept(self._arrived)

    def _arrived(self, event: core.Event) -> None:
        self._armed -= 1
        if event.success:
            self._begin(event)

    def _arrived_late(self, event: core.Event) -> None:
        self._late -= 1
        if event.success:
            self._begin(event)

    def _begin(self, event: core.Event) -> None:
        method = core.method_of(event)
        if self._access is not None:
            refused = self._access.refusal(method.decode(errors="replace"), event.invocation_metadata)
            if refused is not None:
                core.send_status(event.call, refused.number, refused.text, _sent)
                return
        if hot := self._unary.get(method):
            UnaryCall(event, hot, self._unwatched)
        elif hot := self._hot_streams.get(method):
            stream = StreamCall(event, hot, self._stream_in_flight, self._backlog, self._streams)
            if self._streams_closed:
                stream.close()
        else:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._cold, event)

    def _cold(self, event: core.Event) -> None:
        details = _Details(core.method_of(event).decode(errors="replace"), event.invocation_metadata)
        for handlers in self._handlers:
            if handler := handlers.service(details):
                CqContext(event, self._loop).start(handler)
                return
        core.send_status(event.call, grpc.StatusCode.UNIMPLEMENTED.value[0], "Method not found!", _sent)

    def _shut_down(self, _event: core.Event) -> None:
        self._shut = True


@dataclass(frozen=True)
class _Details(grpc.HandlerCallDetails):
    method: str
    invocation_metadata: Any


def _sent(_event: core.Event) -> None:
    """Nobody waits for it."""
