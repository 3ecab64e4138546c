"""What the edge makes of exceptions: nothing of the inside reaches the wire, and no client is left hanging."""

from __future__ import annotations

import asyncio
import logging
import re

import grpc
import pytest

from opara_server.rpc.errors import CODES, Failure, attempt, failure
from opara_server.serving.errors import InvalidInput, Overloaded, Status


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
