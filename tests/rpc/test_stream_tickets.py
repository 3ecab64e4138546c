"""What a stream on the completion queue keeps of its requests, and until when."""

from __future__ import annotations

import gc
import threading
from collections.abc import AsyncIterator
from typing import Any
from weakref import ref

import grpc
import pytest

from opara_server.observe.tracing import Call
from opara_server.rpc.cq_server import CqServer
from opara_server.rpc.edge import Edge
from opara_server.rpc.inference import Reply
from tests.rpc.served import PATIENCE_S, eventually

METHOD = "/test.Echo/Stream"


class Ticket:
    def __init__(self, message: bytes) -> None:
        self.message = message
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()


class Echo:
    """Messages come back: at once, as those that are refused, from another thread, before it is known that they can be
    cancelled, or never."""

    def __init__(self) -> None:
        self._made: list[ref[Ticket]] = []

    @property
    def tickets(self) -> list[Ticket]:
        """That somebody still has."""
        return [ticket for made in self._made.copy() if (ticket := made()) is not None]

    def hot(self, message: bytes, _deadline: float | None, reply: Reply, _call: Call) -> Ticket:
        ticket = Ticket(message)
        self._made.append(ref(ticket))
        if message == b"at once":
            reply(message)
        elif message == b"another thread":
            other = threading.Thread(target=reply, args=(message,))
            other.start()
            other.join()
        return ticket


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, Any]]:
    """And an open stream to it."""
    echo = Echo()
    server = CqServer(Edge(()), {}, {METHOD: echo.hot}, 8)
    port = server.listen("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        open_stream: Any = channel.stream_stream(METHOD, None, None)
        yield echo, open_stream(timeout=PATIENCE_S)
    await server.stop(PATIENCE_S)


@pytest.mark.parametrize("answered", [b"at once", b"another thread"])
async def test_of_what_is_answered_an_open_stream_keeps_nothing(answered: bytes, echo: tuple[Echo, Any]) -> None:
    method, stream = echo
    for _ in range(20):
        await stream.write(answered)
        assert await stream.read() == answered

    def kept() -> int:
        gc.collect()
        return len(method.tickets)

    await eventually(lambda: kept() == 0)


async def test_what_is_not_answered_is_cancelled_with_its_stream_and_nothing_else(echo: tuple[Echo, Any]) -> None:
    method, stream = echo
    for message in (b"never", b"at once", b"never"):
        await stream.write(message)
    assert await stream.read() == b"at once"
    await eventually(lambda: [ticket.message for ticket in method.tickets].count(b"never") == 2)
    known = method.tickets
    stream.cancel()
    await eventually(lambda: all(ticket.cancelled.is_set() for ticket in known if ticket.message == b"never"))
    assert not any(ticket.cancelled.is_set() for ticket in known if ticket.message == b"at once")
