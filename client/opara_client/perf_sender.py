"""One process's share of a load, in one event loop.

Measured against a bare echo, grpc.aio without serializers sends more requests per core than gRPC's blocking calls on
threads or its futures, and nearly as many as a loop on gRPC's own completion queue.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from itertools import count
from pathlib import Path
from selectors import SelectorKey, SelectSelector

import grpc
import grpc.aio

from opara_client.channel import open_async_channel
from opara_client.errors import OparaError, Unavailable
from opara_client.perf_answers import Fault, fault
from opara_client.perf_arrivals import NS
from opara_client.perf_load import Closed, Load, Open, Share, Tally

Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # else all channels of a process share one connection
    ("grpc.enable_retries", 0),  # a failure is counted, not hidden
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)
LAG_PROBE_S = 0.01
SENT_TOGETHER = 16  # of the requests that are due, before the event loop sees to answers
GRACE_NS = NS // 2  # in which what was due before the end may still be sent


class IdleSelector(SelectSelector):
    """``idle_ns``: how long an event loop has had nothing to do."""

    idle_ns = 0

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        began = time.monotonic_ns()
        ready = super().select(timeout)
        self.idle_ns += time.monotonic_ns() - began
        return ready


def precise_loop(selector: IdleSelector) -> asyncio.AbstractEventLoop:
    """An event loop whose timers are late by some 60 µs, where the usual one's are by up to 1.1 ms.

    epoll waits for whole milliseconds, select for microseconds; and Linux adds 50 µs to every wait of a thread that
    does not ask for less. Only few file descriptors are watched: gRPC's own threads watch its sockets.
    """
    with suppress(OSError):  # not Linux, or not allowed: later by 50 µs, which the report shows
        Path("/proc/self/timerslack_ns").write_text("1000")
    return asyncio.SelectorEventLoop(selector)


class Sender:
    """Connected with ``async with``; then ``run`` once. ``selector``: of the event loop that it is used in."""

    def __init__(self, load: Load, share: Share, selector: IdleSelector) -> None:
        self._selector = selector
        self._load = load
        self._share = share
        self._first = [load.protocol.decode(payload.answer) for payload in load.payloads]
        self._tally = Tally()
        self._begin = self._end = 0  # of what is measured, in ns of the monotonic clock
        self._stack = AsyncExitStack()
        self._calls: list[Call] = []

    async def __aenter__(self) -> Sender:
        """Opens the connections; raises Unavailable if one cannot be had in time."""
        load = self._load
        for _ in range(min(load.connections, self._slots)):
            opened = open_async_channel(load.target, CHANNEL_OPTIONS, load.tls)
            channel = await self._stack.enter_async_context(opened)
            self._calls.append(channel.unary_unary(load.protocol.method, None, None))
            try:
                await asyncio.wait_for(channel.channel_ready(), load.timeout_s)
            except TimeoutError as error:
                await self._stack.aclose()
                raise Unavailable(f"{load.target}: no connection within {load.timeout_s:g} s") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def _slots(self) -> int:
        """How many requests may be in flight at once."""
        pace = self._load.pace
        return max(1, self._share.of(pace.concurrency if isinstance(pace, Closed) else pace.max_in_flight))

    async def run(self, start_ns: int) -> Tally:
        """Warms up from ``start_ns`` on, on the monotonic clock, measures, and waits for the last answers."""
        load = self._load
        self._begin = start_ns + round(load.warm_up_s * NS)
        self._end = self._begin + round(load.duration_s * NS)
        await _sleep_until(start_ns)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._observe())
            if isinstance(load.pace, Closed):
                for number in range(self._share.of(load.pace.concurrency)):
                    tasks.create_task(self._caller(number))
            else:
                await self._open(load.pace, start_ns, tasks)
        return self._tally

    async def _caller(self, number: int) -> None:
        """Its payloads take turns, and those of the callers are not in step."""
        call = self._calls[number % len(self._calls)]
        indices = count(self._share.index + number * self._share.processes)
        while (due := time.monotonic_ns()) < self._end:
            await self._request(call, next(indices), due)

    async def _open(self, pace: Open, start_ns: int, tasks: asyncio.TaskGroup) -> None:
        load, share = self._load, self._share
        due_ns = start_ns + pace.arrivals.due_ns(load.warm_up_s + load.duration_s)[share.index :: share.processes]
        numbers = range(share.index, share.index + len(due_ns) * share.processes, share.processes)
        room = asyncio.Semaphore(self._slots)
        for sent, (number, due) in enumerate(zip(numbers, due_ns.tolist(), strict=True)):
            if sent % SENT_TOGETHER == 0 or due > time.monotonic_ns():
                await _sleep_until(due)
            self._tally.held += room.locked() and due >= self._begin
            await room.acquire()
            if time.monotonic_ns() >= self._end + GRACE_NS:
                self._tally.unsent = int((due_ns[sent:] >= self._begin).sum())
                break
            tasks.create_task(self._request_within(room, self._calls[sent % len(self._calls)], number, due))

    async def _request_within(self, room: asyncio.Semaphore, call: Call, number: int, due: int) -> None:
        """Gives back the place that was taken in ``room``."""
        try:
            await self._request(call, number, due)
        finally:
            room.release()

    async def _request(self, call: Call, number: int, due: int) -> None:
        tally, load = self._tally, self._load
        index = number % len(load.payloads)
        sent = time.monotonic_ns()
        code, answer = "OK", b""
        try:
            answer = await call(load.payloads[index].request, timeout=load.timeout_s, metadata=load.bearer.metadata())
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        now = time.monotonic_ns()
        if self._begin <= now < self._end:
            tally.ended += 1
            tally.finished += code == "OK"
        if due < self._begin:
            return
        tally.send_delay.record(sent - due)
        if code != "OK":
            tally.failed[code] += 1
            return
        tally.answered += 1
        tally.latency.record(now - due)
        # Most answers are those that came first, byte by byte: that is known without decoding them.
        if answer != load.payloads[index].answer and (wrong := self._fault(index, answer)):
            tally.wrong[wrong] += 1

    def _fault(self, index: int, answer: bytes) -> Fault | None:
        try:
            outputs = self._load.protocol.decode(answer)
        except OparaError:
            return "undecodable"
        return fault(outputs, self._first[index], self._load.tolerance)

    async def _observe(self) -> None:
        """Watches the generator itself while it is measuring."""
        await _sleep_until(self._begin)
        began, idle_ns, cpu_s = time.monotonic_ns(), self._selector.idle_ns, time.process_time()
        while (now := time.monotonic_ns()) < self._end:
            await asyncio.sleep(LAG_PROBE_S)
            self._tally.lag.record(time.monotonic_ns() - now - round(LAG_PROBE_S * NS))
        self._tally.cpu_s = time.process_time() - cpu_s
        self._tally.busiest = 1 - (self._selector.idle_ns - idle_ns) / (time.monotonic_ns() - began)


async def _sleep_until(due_ns: int) -> None:
    """Other tasks run at least once, even if it is too late already: they send what was begun."""
    await asyncio.sleep(0)
    while (wait := due_ns - time.monotonic_ns()) > 0:
        await asyncio.sleep(wait / NS)
