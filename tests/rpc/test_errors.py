"""What the edge makes of exceptions: nothing of the inside reaches the wire, and no client is left hanging."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import grpc
import pytest

from opara_server.rpc.errors import CODES, Context, Failure, answered, attempt, failure
from opara_server.serving.errors import InvalidInput, Overloaded, Status
from tests.rpc.served import PATIENCE_S, Served, request


def test_every_status_has_the_code_of_its_name() -> None:
    assert {status.value: code.name for status, code in CODES.items()} == {name: name for name in Status.__members__}


def test_a_serving_error_keeps_its_text() -> None:
    assert failure(InvalidInput("input 'x': no")) == Failure(grpc.StatusCode.INVALID_ARGUMENT, "input 'x': no")
    assert failure(Overloaded("full")).number == 8


def test_a_text_fits_the_headers_it_travels_in() -> None:
    assert len(failure(InvalidInput("x" * 100_000)).text) == 1024


async def test_an_unknown_error_is_logged_and_only_its_reference_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        raise ValueError("secret in /etc/passwd")

    with caplog.at_level(logging.ERROR):
        outcome = await attempt(work())
    assert isinstance(outcome, Failure)
    assert outcome.code is grpc.StatusCode.INTERNAL
    assert re.fullmatch(r"internal error [0-9a-f]+", outcome.text)
    assert outcome.text in caplog.text
    assert "secret in /etc/passwd" in caplog.text


async def test_a_cancellation_of_our_own_making_is_answered() -> None:
    async def work() -> None:
        raise asyncio.CancelledError("a bug")

    outcome = await attempt(work())
    assert isinstance(outcome, Failure)
    assert outcome.code is grpc.StatusCode.INTERNAL


async def test_the_cancellation_of_a_call_that_is_over_passes() -> None:
    task = asyncio.create_task(attempt(asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Ended:
    """A call whose ``abort`` ends with ``error``, as grpc's does."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def abort(self, _code: grpc.StatusCode, _text: str) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (grpc.aio.AbortError("aborted"), grpc.aio.AbortError),
        (grpc.aio.InternalError("failed execute_batch"), asyncio.CancelledError),  # the call was over: nobody is told
    ],
)
async def test_how_a_failing_rpc_ends(error: Exception, passes: type[BaseException]) -> None:
    @answered
    async def fail(_self: None, _message: bytes, _context: Context) -> bytes:
        raise InvalidInput("no")

    context: Any = Ended(error)
    with pytest.raises(passes):
        await fail(None, b"", context)


async def test_clients_that_leave_while_their_requests_fail_leave_no_errors_behind(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for pause in range(10):
        calls = [served.stub.Infer(request(1.0, model="nobody"), timeout=PATIENCE_S) for _ in range(100)]
        await asyncio.sleep(pause / 1000)
        for call in calls:
            call.cancel()
        for call in calls:
            await asyncio.wait_for(call.code(), PATIENCE_S)
    await served.app.stop()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_clients_whose_time_passes_as_they_are_answered_leave_no_errors_behind(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(50):
        calls = [served.stub.Infer(request(1.0), timeout=late / 2000) for late in range(1, 31)]
        for call in calls:
            await asyncio.wait_for(call.code(), PATIENCE_S)
    await served.app.stop()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
