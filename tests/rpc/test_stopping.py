"""What becomes of calls that come about when a server stops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc
import pytest
from grpc import StatusCode

from opara_server.observe.metrics import Metrics
from opara_server.observe.tracing import Call
from opara_server.rpc import cq_core
from opara_server.rpc.cq_server import ARMED, CqServer
from opara_server.rpc.edge import Edge
from opara_server.rpc.inference import MODEL_INFER, Inference, Reply
from opara_server.rpc.transports import AIO, CQ, AioTransport, open_transport
from opara_server.rpc.turn import Turn
from opara_server.serving.models import not_found
from tests.rpc.raw_http2 import PATIENCE_S, framed, raw_connection


def echo(message: bytes, _deadline: float | None, reply: Reply, _call: Call) -> None:
    reply(message)


async def test_calls_that_have_come_but_were_not_taken_are_answered() -> None:
    turn = Turn()
    server = CqServer(Edge(()), {"/test.Echo/Echo": echo}, {}, 1, turn)
    port = server.listen("127.0.0.1:0")
    await server.start()
    async with raw_connection(f"127.0.0.1:{port}") as raw:
        await asyncio.to_thread(turn.acquire)  # the thread that serves takes no call meanwhile
        calls = [await raw.call("/test.Echo/Echo", framed(b"hello")) for _ in range(4 * ARMED)]
        await raw.all_has_come()
        stopping = asyncio.create_task(server.stop(PATIENCE_S))
        await asyncio.sleep(0)  # gRPC's server is shut down
        turn.release()
        assert {(await raw.trailers(call))["grpc-status"] for call in calls} == {"0"}
    await stopping


@pytest.mark.parametrize("kind", [AIO, CQ])
async def test_a_stream_that_comes_once_streams_are_closed_is_told_so_at_once(kind: str) -> None:
    """It would hold the server up for all of its grace."""
    methods: Any = SimpleNamespace(unary={}, streams={"/test.Echo/Stream": echo})
    server = open_transport(kind, Edge(()), methods, 1)
    port = server.listen("127.0.0.1:0")
    await server.start()
    server.close_streams()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        open_stream: Any = channel.stream_stream("/test.Echo/Stream", None, None)
        assert await open_stream(timeout=PATIENCE_S).code() is StatusCode.UNAVAILABLE
    await server.stop(PATIENCE_S)


async def test_nothing_is_destroyed_while_it_is_being_shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last event may come before the call that leads to it has returned."""
    order = []

    class Slow(cq_core.Core):
        def shut_down(self, tag: cq_core.Tag) -> None:
            super().shut_down(tag)
            server._thread.join(PATIENCE_S)
            order.append("shut down")

        def destroy(self) -> None:
            order.append("destroyed")
            super().destroy()

    monkeypatch.setattr(cq_core, "Core", Slow)
    server = CqServer(Edge(()), {}, {}, 1)
    server.listen("127.0.0.1:0")
    await server.start()
    await server.stop(PATIENCE_S)
    assert order == ["shut down", "destroyed"]


class NoModels:
    generation = 0

    def get(self, name: str) -> NoReturn:
        not_found(name)


@pytest.mark.parametrize("held_up", [False, True])
async def test_grpc_aio_takes_what_has_come_before_it_stops(held_up: bool) -> None:
    """Otherwise it cancels that. ``held_up``: the whole process, as on a busy machine."""
    quiet_s = 0.2
    come, codes = threading.Event(), Counter[str]()

    async def call_many(port: int) -> None:
        async with raw_connection(f"127.0.0.1:{port}") as raw:
            calls = [await raw.call(MODEL_INFER, framed(b"")) for _ in range(4 * ARMED)]
            await raw.all_has_come()
            come.set()
            for call in calls:
                codes[(await raw.trailers(call))["grpc-status"]] += 1

    server = AioTransport(Edge(()), Inference(NoModels(), Metrics()), 1, quiet_s=quiet_s)
    port = server.listen("127.0.0.1:0")
    await server.start()
    client = threading.Thread(target=asyncio.run, args=(call_many(port),))
    client.start()
    assert come.wait(PATIENCE_S)  # the event loop takes no call meanwhile
    if held_up:
        asyncio.get_running_loop().call_soon(time.sleep, 3 * quiet_s)  # nor where it was to see whether any comes
    await server.stop(PATIENCE_S)
    await asyncio.to_thread(client.join)
    assert codes == {str(StatusCode.NOT_FOUND.value[0]): 4 * ARMED}


async def test_streams_may_come_while_streams_are_closed() -> None:
    """Which list of them is made while it changes."""
    replies: list[Reply] = []
    server = CqServer(Edge(()), {}, {"/test.Kept/Kept": lambda _m, _d, reply, _c: replies.append(reply)}, 1)
    port = server.listen("127.0.0.1:0")
    await server.start()
    over = threading.Event()

    def close() -> None:
        while not over.is_set():
            server.close_streams()

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stream: Any = channel.stream_stream("/test.Kept/Kept", None, None)
        calls = [stream() for _ in range(300)]
        for call in calls:
            await call.write(b"")
        while len(replies) < len(calls):
            await asyncio.sleep(0.01)
        closing = asyncio.create_task(asyncio.to_thread(close))
        late = [stream() for _ in range(500)]
        codes = {await call.code() for call in late}
        over.set()
        await closing
        while replies:  # gRPC takes a call to go on while its reply is kept
            replies.pop()(b"")
        assert {await call.read() for call in calls} == {b""}
        codes |= {await call.code() for call in calls}
    assert codes == {StatusCode.UNAVAILABLE}
    await server.stop(PATIENCE_S)
