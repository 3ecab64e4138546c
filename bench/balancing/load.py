"""Clients that stay: an open loop of small requests over long-lived connections, each answer checked."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
import numpy as np

from bench.balancing.replicas import INPUT, MODEL, WIDTH
from opara_client.channel import DEFAULT_MAX_MESSAGE_BYTES, Options, channel_options, open_async_channel
from opara_protos.v1 import inference_pb2 as pb

METHOD = "/opara.v1.InferenceService/Infer"
TIMEOUT_S = 120.0
RETRIES_OFF: Options = (("grpc.enable_retries", 0),)
Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


@dataclass(frozen=True)
class Failure:
    """A request without an answer. ``number``: how many were sent before it."""

    number: int
    code: str
    details: str


@dataclass
class Outcome:
    """Of a load. ``open``: numbers of the requests that have no answer yet. ``latencies``: seconds of those that were
    answered, by when they were."""

    sent: int = 0
    wrong: int = 0
    open: set[int] = field(default_factory=set)
    latencies: list[float] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return len(self.latencies)

    def over(self, begin: int, end: int) -> bool:
        """Whether the requests ``begin`` to ``end`` have been sent and have ended, one way or the other."""
        return self.sent >= end and self.open.isdisjoint(range(begin, end))

    def overtaken(self, by: int) -> int:
        """How many have no answer, though so many that were sent later have ended."""
        waiting = sorted(self.open, reverse=True)
        return sum(self.sent - number - 1 - later >= by for later, number in enumerate(waiting))

    def codes(self) -> Counter[str]:
        """How many failed, by what they were told."""
        return Counter(f"{failure.code}: {failure.details}" for failure in self.failures)

    def quantile_ms(self, share: float) -> float:
        return round(1e3 * float(np.quantile(self.latencies, share)), 2)


class Load:
    """``rate`` requests/s, evenly, on the connections in turns; whatever becomes of them, as long as ``at_most`` are
    open."""

    def __init__(self, calls: Sequence[Call], rate: float, at_most: int) -> None:
        self.outcome = Outcome()
        self._calls = calls
        self._rate = rate
        self._room = asyncio.Semaphore(at_most)
        self._stopped = False

    async def run(self) -> None:
        """Until ``stop``, and until the last of them has ended."""
        begin = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            while not self._stopped:
                due = begin + self.outcome.sent / self._rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await self._room.acquire()
                self.outcome.open.add(self.outcome.sent)
                tasks.create_task(self._request(self.outcome.sent))
                self.outcome.sent += 1

    def stop(self) -> None:
        self._stopped = True

    async def _request(self, number: int) -> None:
        outcome, begun = self.outcome, time.monotonic()
        data = np.full(WIDTH, number, np.float32).tobytes()
        try:
            answer = await self._calls[number % len(self._calls)](_message(data), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            outcome.failures.append(Failure(number, error.code().name, _first_words(error.details())))
            return
        finally:
            outcome.open.discard(number)
            self._room.release()
        outcome.latencies.append(time.monotonic() - begun)
        outcome.wrong += pb.InferResponse.FromString(answer).outputs[0].data != data


@asynccontextmanager
async def connected(target: str, connections: int, options: Options = ()) -> AsyncIterator[list[Call]]:
    """As many clients, each with connections of its own, as opara_client opens them but for ``options``."""
    everything = [*channel_options(DEFAULT_MAX_MESSAGE_BYTES), ("grpc.use_local_subchannel_pool", 1), *options]
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(open_async_channel(target, everything, None)) for _ in range(connections)
        ]
        await asyncio.wait_for(asyncio.gather(*(channel.channel_ready() for channel in channels)), TIMEOUT_S)
        yield [channel.unary_unary(METHOD, None, None) for channel in channels]


@asynccontextmanager
async def offered(
    target: str, rate: float, connections: int, options: Options = (), at_most: int = 1 << 20
) -> AsyncIterator[Outcome]:
    """A load while the block runs; its outcome is complete after it."""
    async with connected(target, connections, options) as calls:
        load = Load(calls, rate, at_most)
        running = asyncio.create_task(load.run())
        try:
            yield load.outcome
        finally:
            load.stop()
            await running


def _message(data: bytes) -> bytes:
    tensor = pb.Tensor(name=INPUT, data_type=pb.DATA_TYPE_FLOAT32, shape=(1, WIDTH), data=data)
    return pb.InferRequest(model=MODEL, inputs=[tensor]).SerializeToString()


def _first_words(details: str | None) -> str:
    """Without addresses, which would make each of them one of a kind."""
    return (details or "").partition(";")[0].partition(" ipv4:")[0]
