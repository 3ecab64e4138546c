"""Of a call that ends before it is answered the server hears, also while it has other things to do."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest

from opara_server.observe.tracing import Call
from opara_server.rpc.cq_server import CqServer
from opara_server.rpc.edge import Edge
from opara_server.rpc.inference import Reply
from opara_server.rpc.turn import Turn
from tests.rpc.raw_http2 import PATIENCE_S

METHOD = "/test.Nothing/Wait"


class Ticket:
    """Of a request that nobody works on."""

    def __init__(self) -> None:
        self.come, self.cancelled = threading.Event(), threading.Event()

    def hot(self, _message: bytes, _deadline: float | None, _reply: Reply, _call: Call) -> Ticket:
        self.come.set()
        return self

    def cancel(self) -> None:
        self.cancelled.set()


@pytest.mark.parametrize("busy", [False, True])
async def test_a_call_that_is_cancelled_cancels_its_ticket(busy: bool) -> None:
    turn, ended, ticket = Turn(), threading.Event(), Ticket()
    if busy:
        turn.add(lambda: not ended.is_set())  # the thread that serves never sleeps
    server = CqServer(Edge(()), {METHOD: ticket.hot}, {}, 1, turn)
    port = server.listen("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD, None, None)(b"")
        assert await asyncio.to_thread(ticket.come.wait, PATIENCE_S)
        call.cancel()
        assert await asyncio.to_thread(ticket.cancelled.wait, PATIENCE_S)
    ended.set()
    await server.stop(PATIENCE_S)
