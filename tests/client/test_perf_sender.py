"""A process's share of a load, against real servers in this process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import NoReturn

import grpc
import numpy as np
import pytest

from opara_client.errors import Unavailable
from opara_client.perf_arrivals import NS, Arrivals, Spacing
from opara_client.perf_load import Closed, Load, Open, Payload, Share, Tally
from opara_client.perf_opara import OparaProtocol
from opara_client.perf_sender import IdleSelector, Sender, precise_loop
from opara_protos.v1 import inference_pb2 as pb
from tests.client.raw_server import RawServer

OPARA = OparaProtocol()
ALONE = Share(0, 1)


def payload(value: float) -> Payload:
    """An Infer request and its echo read the same: both have model, id and tensors as fields 1, 2 and 3."""
    message = OPARA.encode("m", {"x": np.full((1, 2), value, np.float32)}, {})
    return Payload(message, message)


PAYLOADS = tuple(map(payload, range(3)))


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due is sent, however late this machine is."""
    monkeypatch.setattr("opara_client.perf_sender.GRACE_NS", 60 * NS)


def echo(request: bytes, _context: grpc.ServicerContext) -> bytes:
    return request


def constant(rate: float, max_in_flight: int = 1000) -> Open:
    return Open(Arrivals(rate, spacing=Spacing.CONSTANT), max_in_flight)


def load(target: str, pace: Closed | Open, **changes: object) -> Load:
    values = {
        "protocol": OPARA,
        "payloads": PAYLOADS,
        "connections": 2,
        "warm_up_s": 0.0,
        "duration_s": 0.2,
        "timeout_s": 60.0,
        "tolerance": None,
    }
    return Load(target=target, pace=pace, **{**values, **changes})  # type: ignore[arg-type]


def now_ns() -> int:
    """On the senders' clock."""
    return time.monotonic_ns()


def send(what: Load, share: Share = ALONE) -> Tally:
    selector = IdleSelector()

    async def run() -> Tally:
        async with Sender(what, share, selector) as sender:
            return await sender.run(now_ns())

    with asyncio.Runner(loop_factory=lambda: precise_loop(selector)) as runner:
        return runner.run(run())


class Patient:
    """The machine's clock, but that it stands still until so many calls have come: however late this machine is, a
    closed loop has begun then, and not ended."""

    def __init__(self, server: RawServer, calls: int) -> None:
        self._came, self._calls = server.calls[OPARA.method], len(server.calls[OPARA.method]) + calls
        self._behind_ns, self._last_ns = 0, time.monotonic_ns()

    def __call__(self) -> int:
        now = time.monotonic_ns()
        if len(self._came) < self._calls:
            self._behind_ns += now - self._last_ns
        self._last_ns = now
        return now - self._behind_ns


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Callable[[RawServer, int], None]:
    """Gives senders such a clock."""

    def give(server: RawServer, calls: int) -> None:
        clock = Patient(server, calls)
        told = SimpleNamespace(monotonic_ns=clock, process_time=time.process_time)
        monkeypatch.setattr("opara_client.perf_sender.time", told)
        monkeypatch.setattr(f"{__name__}.now_ns", clock)

    return give


def infer(method: Callable[[bytes, grpc.ServicerContext], bytes]) -> RawServer:
    return RawServer({OPARA.method: method})


def test_a_closed_loop_keeps_its_concurrency_and_sends_all_payloads(
    patient: Callable[[RawServer, int], None],
) -> None:
    lock = threading.Lock()
    inside: list[int] = [0]
    most: list[int] = [0]
    numbers, together = count(), threading.Barrier(4)

    def method(request: bytes, _context: grpc.ServicerContext) -> bytes:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            first = next(numbers) < 4
        if first:
            together.wait(60)
        time.sleep(0.005)
        with lock:
            inside[0] -= 1
        return request

    with infer(method) as server:
        patient(server, 4)
        tally = send(load(server.target, Closed(4), duration_s=0.5))
    assert most == [4]
    seen = Counter(server.calls[OPARA.method])
    assert seen.keys() == {payload.request for payload in PAYLOADS}
    assert max(seen.values()) - min(seen.values()) <= 4
    assert tally.sent == tally.answered == tally.latency.count == len(server.calls[OPARA.method])
    assert tally.answered - 4 <= tally.finished <= tally.answered
    assert tally.latency.percentile(0.1) > 5_000_000
    assert (tally.failed, tally.wrong, tally.unsent) == (Counter(), Counter(), 0)
    assert 0 < tally.busiest < 1
    assert tally.cpu_s > 0
    assert tally.lag.count > 0


def test_an_open_loop_sends_what_is_due_and_its_share_alone() -> None:
    with infer(echo) as server:
        first = send(load(server.target, constant(200)), Share(0, 3))
        rest = send(load(server.target, constant(200)), Share(1, 3))
    assert first.answered == 14  # of 40, numbers 0, 3, ... 39
    assert rest.answered == 13
    assert first.unsent == first.held == rest.unsent == 0


def test_the_shares_of_a_load_are_all_of_it() -> None:
    assert [Share(index, 3).of(32) for index in range(3)] == [11, 11, 10]


def test_latency_counts_from_when_a_request_was_due(patient: Callable[[RawServer, int], None]) -> None:
    """One request stalls the server for 0.3 s: all that were due meanwhile were late, though each was answered fast."""
    stalled = threading.Event()

    def method(request: bytes, _context: grpc.ServicerContext) -> bytes:
        if not stalled.is_set():
            stalled.set()
            time.sleep(0.3)
        return request

    with infer(method) as server:
        opened = send(load(server.target, constant(100, max_in_flight=1), duration_s=0.5))
        stalled.clear()
        patient(server, 1)
        closed = send(load(server.target, Closed(1), duration_s=0.5))
    assert opened.answered == 50
    assert opened.held >= 25
    assert _slower(opened, 0.1) >= 20
    assert opened.send_delay.percentile(50) > 0
    assert 1 <= _slower(closed, 0.1) <= 4  # as many as there is time for, whatever else holds this machine up


def test_an_open_loop_does_not_wait_for_answers() -> None:
    gate = threading.Barrier(8)  # opens when eight requests are in flight at once

    def method(request: bytes, _context: grpc.ServicerContext) -> bytes:
        gate.wait(60)
        return request

    with infer(method) as server:
        tally = send(load(server.target, constant(80)))  # 16 requests
    assert tally.answered == 16


def test_what_cannot_be_sent_in_the_time_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opara_client.perf_sender.GRACE_NS", NS // 2)

    def method(request: bytes, _context: grpc.ServicerContext) -> bytes:
        time.sleep(0.1)
        return request

    with infer(method) as server:
        tally = send(load(server.target, constant(200, max_in_flight=2)))
    assert tally.unsent > 0
    assert tally.sent + tally.unsent == 40


def test_the_warm_up_is_not_counted() -> None:
    payloads = tuple(map(payload, range(35)))  # as many as there are requests
    early = {one.request for one in payloads[:10]}

    def method(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request in early:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not warm")
        return request

    with infer(method) as server:
        tally = send(load(server.target, constant(100), warm_up_s=0.15, payloads=payloads))
    assert len(server.calls[OPARA.method]) == 35
    assert tally.failed == {}
    assert tally.answered == 20


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL]
)
def test_failures_are_counted_by_status_and_have_no_latency(code: grpc.StatusCode) -> None:
    def method(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == PAYLOADS[0].request:
            _abort(context, code)
        return request

    with infer(method) as server:
        tally = send(load(server.target, constant(30), duration_s=1.0))
    assert tally.failed == {code.name: 10}
    assert (tally.sent, tally.answered, tally.latency.count) == (30, 20, 20)
    assert tally.send_delay.count == 30
    assert tally.finished <= tally.ended <= 30


def test_what_ends_in_the_time_is_counted_whether_it_fails_or_not(patient: Callable[[RawServer, int], None]) -> None:
    def method(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == PAYLOADS[0].request:
            _abort(context, grpc.StatusCode.INTERNAL)
        return request

    with infer(method) as server:
        patient(server, 3)  # of which the third comes once the first two have ended
        tally = send(load(server.target, Closed(1)))
    assert 0 < tally.finished < tally.ended <= tally.sent


def test_no_answer_in_time(patient: Callable[[RawServer, int], None]) -> None:
    def method(request: bytes, context: grpc.ServicerContext) -> bytes:
        gone = threading.Event()
        if context.add_callback(gone.set):
            gone.wait(60)
        return request

    with infer(method) as server:
        patient(server, 1)
        tally = send(load(server.target, Closed(1), timeout_s=1.0))
    assert tally.failed.keys() == {"DEADLINE_EXCEEDED"}
    assert tally.answered == 0


def _reply(shape: tuple[int, ...], value: float) -> bytes:
    data = np.full(shape, value, np.float32).tobytes()
    tensor = pb.Tensor(name="x", data_type=pb.DATA_TYPE_FLOAT32, shape=shape, data=data)
    return pb.InferResponse(model="m", outputs=[tensor]).SerializeToString()


@pytest.mark.parametrize(
    ("reply", "tolerance", "wrong"),
    [
        (_reply((2, 2), 0.0), None, "shape"),
        (b"\xff", None, "undecodable"),
        (_reply((1, 2), 1.5), None, None),
        (_reply((1, 2), 1.5), 0.0, "values"),
        (_reply((1, 2), 1.5), 0.6, None),
    ],
)
def test_answers_are_checked(reply: bytes, tolerance: float | None, wrong: str | None) -> None:
    def method(request: bytes, _context: grpc.ServicerContext) -> bytes:
        return reply if request == PAYLOADS[1].request else request

    with infer(method) as server:
        tally = send(load(server.target, constant(150), tolerance=tolerance))
    assert tally.wrong == ({wrong: 10} if wrong else {})
    assert tally.answered == 30


def test_nobody_listens() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1: no connection within 0\.2 s"):
        send(load("127.0.0.1:1", Closed(1), timeout_s=0.2))


def test_each_connection_is_one_of_its_own(patient: Callable[[RawServer, int], None]) -> None:
    peers = set()

    def method(request: bytes, context: grpc.ServicerContext) -> bytes:
        peers.add(context.peer())
        return request

    with infer(method) as server:
        patient(server, 6)
        send(load(server.target, Closed(6), connections=3, duration_s=0.5))
        assert len(peers) == 3
        send(load(server.target, constant(100), connections=3))
        assert len(peers) == 6


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode) -> NoReturn:
    context.abort(code, "")
    raise AssertionError("abort returned")


def _slower(tally: Tally, seconds: float) -> int:
    return sum(count for upper_ns, count in tally.latency.buckets() if upper_ns > seconds * 1e9)
