"""Clients that send requests and take no answers: what waits for all of them together is bounded, on any transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from opara_server.observe.tracing import Call
from opara_server.rpc.backlog import Backlog
from opara_server.rpc.edge import Edge
from opara_server.rpc.inference import Reply
from opara_server.rpc.transports import open_transport
from tests.rpc.served import MAX_QUEUE_ROWS, MODEL, PATIENCE_S, WORKER, doubled, eventually, serve
from tests.rpc.test_stream import Stream, streamed

METHOD = "/test.Held/Stream"
IN_FLIGHT = 8
LARGE = 1 << 20  # bytes of an answer: more than connections take from a server whose client does not read


class Held:
    """Requests are answered when a test says so."""

    def __init__(self) -> None:
        self._replies: dict[bytes, Reply] = {}

    def hot(self, message: bytes, _deadline: float | None, reply: Reply, _call: Call) -> None:
        self._replies[message] = reply

    def come(self, whose: str) -> int:
        """How many requests of a client's have come and are not answered."""
        return sum(message.startswith(whose.encode()) for message in self._replies)

    def answer(self, whose: str, nbytes: int = 0) -> None:
        """All that have come: what was asked, and so many bytes more."""
        for message in [message for message in self._replies if message.startswith(whose.encode())]:
            self._replies.pop(message)(message + bytes(nbytes))


class Client:
    """With a connection of its own, which it reads from when a test says so."""

    def __init__(self, name: str, channel: grpc.aio.Channel, held: Held) -> None:
        self._name, self._held, self._sent = name, held, 0
        open_stream: Any = channel.stream_stream(METHOD, None, None)
        self.call: Any = open_stream(timeout=10 * PATIENCE_S)

    async def send(self, number: int) -> None:
        for _ in range(number):
            self._sent += 1
            await self.call.write(f"{self._name}{self._sent}".encode())

    async def come(self, number: int) -> None:
        await eventually(lambda: self._held.come(self._name) == number)

    async def read(self, number: int) -> None:
        """So many answers, in whatever order, each another one."""
        answers = [await asyncio.wait_for(self.call.read(), PATIENCE_S) for _ in range(number)]
        assert len({answer.rstrip(b"\0") for answer in answers}) == number

    async def exchange(self) -> None:
        """One request, from its beginning to its end."""
        await self.send(1)
        await self.come(1)
        self._held.answer(self._name)
        await self.read(1)


@asynccontextmanager
async def clients(transport: str, backlog: Backlog, *names: str) -> AsyncIterator[tuple[Any, ...]]:
    """The method, and clients of it."""
    held = Held()
    methods: Any = SimpleNamespace(unary={}, streams={METHOD: held.hot})
    server = open_transport(transport, Edge(()), methods, IN_FLIGHT, backlog=backlog)
    address = f"127.0.0.1:{server.listen('127.0.0.1:0')}"
    await server.start()
    # Without probes of its bandwidth a connection takes 64 KiB that nobody reads, and no more.
    options = (
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.http2.bdp_probe", 0),
    )
    channels = [grpc.aio.insecure_channel(address, options) for _ in names]
    yield held, *(Client(name, channel, held) for name, channel in zip(names, channels, strict=True))
    for channel in channels:
        await channel.close(None)
    await server.stop(PATIENCE_S)


@pytest.mark.parametrize("end", ["reads", "leaves"])
async def test_while_too_much_waits_for_slow_readers_streams_have_one_request_in_flight(
    transport: str, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    backlog = Backlog(LARGE)
    async with clients(transport, backlog, "slow", "quick", "other") as (held, slow, quick, other):
        await slow.send(2 * IN_FLIGHT)
        await slow.come(IN_FLIGHT)
        assert backlog.nbytes == 0
        held.answer("slow", LARGE)
        await eventually(lambda: backlog.nbytes > LARGE)
        await quick.send(IN_FLIGHT)
        await quick.come(1)
        for answered in range(IN_FLIGHT):
            for _ in range(3):  # time for more to come, if more could
                await other.exchange()
            assert held.come("quick") == 1
            assert held.come("slow") == 0
            held.answer("quick")
            await quick.read(1)
            await quick.come(min(1, IN_FLIGHT - 1 - answered))
        if end == "reads":
            await slow.read(IN_FLIGHT)
            await slow.come(IN_FLIGHT)
        else:
            slow.call.cancel()
        await eventually(lambda: backlog.nbytes == 0)
        await quick.send(IN_FLIGHT)
        await quick.come(IN_FLIGHT)
        held.answer("quick")
        await quick.read(IN_FLIGHT)
    told = [record for record in caplog.records if "slow readers" in record.getMessage()]
    assert len(told) == 1


class Recorded(Backlog):
    """Which remembers what changed."""

    def __init__(self) -> None:
        super().__init__(1)
        self.changes: list[int] = []

    def change(self, nbytes: int) -> None:
        self.changes.append(nbytes)
        super().change(nbytes)


async def test_an_answer_with_none_before_it_does_not_wait(transport: str) -> None:
    backlog = Recorded()
    async with clients(transport, backlog, *"abcdefgh") as (_, *all_of_them):
        for client in all_of_them:
            await client.exchange()
    assert backlog.changes == []


@pytest.mark.parametrize("how", ["aio", "cq", WORKER])
async def test_a_stream_that_may_have_one_in_flight_is_answered_as_others_are(models: Path, how: str) -> None:
    async with serve(models, transport=how, max_stream_backlog_bytes=1) as served:
        streams = [Stream(served) for _ in range(4)]
        number = MAX_QUEUE_ROWS // len(streams)  # all of them may wait at once
        for value in range(number):
            for stream in streams:
                await stream.send(streamed(float(value)))
        for stream in streams:
            answers = {answer.id: doubled(answer.response) async for answer in stream.rest()}
            assert answers == {f"{value}": [2.0 * value] for value in range(number)}
        assert served.sample("opara_rows_total", model=MODEL) == number * len(streams)
