"""Which of two statuses of a call is told, in whatever order they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from opara_client import Internal, ResourceExhausted
from opara_client.ending import LOOK_S, OWN, Ending, Status

REAL: Status = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too large")
SERVERS: Status = (grpc.StatusCode.INTERNAL, "reference 7")


class Call:
    """Has the statuses it is given."""

    def __init__(self) -> None:
        self.status: Status = OWN
        self.callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)

    def end(self, status: Status) -> None:
        self.status = status
        for callback in self.callbacks:
            callback(self)
        self.callbacks.clear()

    async def code(self) -> grpc.StatusCode:
        return self.status[0]

    async def details(self) -> str | None:
        return self.status[1]


def raised(status: Status) -> AioRpcError:
    return AioRpcError(status[0], Metadata(), Metadata(), details=status[1], debug_error_string=None)


async def test_a_status_that_was_there_before() -> None:
    call = Call()
    ending = Ending(call)  # type: ignore[arg-type]
    call.end(REAL)
    call.end(OWN)
    with pytest.raises(ResourceExhausted, match="too large"):
        await ending.check(raised(OWN))


async def test_a_status_that_comes_later() -> None:
    call = Call()
    ending = Ending(call)  # type: ignore[arg-type]
    call.end(OWN)
    asyncio.get_running_loop().call_later(0.02, call.end, REAL)
    with pytest.raises(ResourceExhausted, match="too large"):
        await ending.check(raised(OWN))


async def test_a_status_that_comes_once_a_process_that_was_held_up_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opara_client.ending.LOOKS", looks := 20)
    call, loop = Call(), asyncio.get_running_loop()
    ending = Ending(call)  # type: ignore[arg-type]
    call.end(OWN)
    checking = asyncio.create_task(ending.check(raised(OWN)))
    await asyncio.sleep(0)
    time.sleep(2 * looks * LOOK_S)  # the event loop is held up, too
    loop.call_soon(loop.call_soon, loop.call_soon, call.end, REAL)
    with pytest.raises(ResourceExhausted, match="too large"):
        await checking


async def test_a_stream_that_had_ended_well() -> None:
    call = Call()
    ending = Ending(call)  # type: ignore[arg-type]
    call.end((grpc.StatusCode.OK, ""))
    await ending.check(raised(OWN))


async def test_an_internal_error_of_the_server_s() -> None:
    call = Call()
    ending = Ending(call)  # type: ignore[arg-type]
    call.end(SERVERS)
    with pytest.raises(Internal, match="reference 7"):
        await ending.check(raised(SERVERS))


async def test_where_no_other_status_comes_it_is_grpc_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opara_client.ending.LOOKS", 10)
    call = Call()
    ending = Ending(call)  # type: ignore[arg-type]
    call.end(OWN)
    with pytest.raises(Internal, match="Internal error from Core"):
        await ending.check(raised(OWN))
