"""Of a call that ends before it is answered the server hears, also while it has other things to do."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import cast

import grpc
import pytest

from opara_server.observe.tracing import Call
from opara_server.rpc import cq_calls
from opara_server.rpc.cq_server import CqServer
from opara_server.rpc.edge import Edge
from opara_server.rpc.inference import Reply
from opara_server.rpc.turn import Turn
from tests.rpc.raw_http2 import PATIENCE_S

METHOD = "/test.Nothing/Wait"


class Watched:
    def __init__(self) -> None:
        self.watched = 0

    def watch(self) -> None:
        self.watched += 1


def test_only_calls_that_take_long_are_watched_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(cq_calls, "time", SimpleNamespace(monotonic=lambda: now))
    unwatched, calls = cq_calls.Unwatched(), [Watched() for _ in range(3)]
    slow, quick, later = map(cast_call, calls)
    assert unwatched.watch() is None
    for call in (slow, quick):
        unwatched.add(call)
    assert unwatched.watch() == pytest.approx(0.005)
    now += 0.002
    unwatched.add(later)
    assert (unwatched.take(quick), unwatched.take(quick)) == (True, False)  # it is answered
    assert unwatched.watch() == pytest.approx(0.003)
    assert [call.watched for call in calls] == [0, 0, 0]
    now += 0.004
    assert unwatched.watch() == pytest.approx(0.001)
    assert [call.watched for call in calls] == [1, 0, 0]
    now += 0.004
    assert unwatched.watch() is None
    assert [call.watched for call in calls] == [1, 0, 1]
    assert not any(map(unwatched.take, (slow, quick, later)))


def cast_call(call: Watched) -> cq_calls.UnaryCall:
    return cast("cq_calls.UnaryCall", call)


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
    turn, ended, ticket, worked = Turn(), threading.Event(), Ticket(), threading.Event()

    def chore() -> bool:
        worked.set()
        return not ended.is_set()

    if busy:
        turn.add(chore)  # the thread that serves never sleeps
    server = CqServer(Edge(()), {METHOD: ticket.hot}, {}, 1, turn)
    port = server.listen("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD, None, None)(b"")
        assert await asyncio.to_thread(ticket.come.wait, PATIENCE_S)
        assert not busy or await asyncio.to_thread(worked.wait, PATIENCE_S)
        call.cancel()
        assert await asyncio.to_thread(ticket.cancelled.wait, PATIENCE_S)
    ended.set()
    await server.stop(PATIENCE_S)
