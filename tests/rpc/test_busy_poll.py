"""Looking for more calls before sleeping: for how long, and that nothing else suffers."""

from __future__ import annotations

import grpc
import pytest

from opara_server.observe.tracing import Call
from opara_server.rpc.busy_poll import BusyPoll
from opara_server.rpc.cq_server import CqServer
from opara_server.rpc.edge import Edge
from opara_server.rpc.inference import Reply
from opara_server.rpc.turn import Turn
from tests.rpc.served import PATIENCE_S, eventually

METHOD = "/test.Echo/Echo"
FOR_EVER_S = 1e6


def test_it_goes_on_for_its_time_after_each_event() -> None:
    now = 100.0
    poll = BusyPoll(0.5, lambda: now)
    assert not poll.goes_on
    poll.begin()
    assert poll.goes_on
    now = 100.4
    assert poll.goes_on
    poll.begin()
    now = 100.8
    assert poll.goes_on
    now = 100.9
    assert not poll.goes_on


def test_without_a_time_it_never_does() -> None:
    poll = BusyPoll(0.0, lambda: -1.0)
    poll.begin()
    assert not poll.goes_on


class Chore:
    def __init__(self) -> None:
        self.done = 0

    def __call__(self) -> bool:
        self.done += 1
        return False


def echo(message: bytes, _deadline: float | None, reply: Reply, _call: Call) -> None:
    reply(message)


@pytest.mark.parametrize("seconds", [0.0, FOR_EVER_S])
async def test_the_thread_that_serves_does_its_chores_meanwhile_and_keeps_its_turn(seconds: float) -> None:
    turn, chore = Turn(), Chore()
    server = CqServer(Edge(()), {METHOD: echo}, {}, 1, turn, busy_poll_s=seconds)
    turn.add(chore)
    port = server.listen("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD, None, None)
        assert await call(b"hello", timeout=PATIENCE_S) == b"hello"
        if seconds:
            begun = chore.done
            await eventually(lambda: chore.done > begun + 1000)
            assert turn._lock.locked()
        else:
            await eventually(lambda: not turn._lock.locked())
        assert await call(b"again", timeout=PATIENCE_S) == b"again"
    await server.stop(PATIENCE_S)
