"""InferStream: many in flight, answered as they finish; an error answers its request and leaves the stream open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest

from opara_protos.v1 import inference_pb2 as pb
from opara_server.rpc.front import STREAM_IN_FLIGHT
from tests.rpc.served import MODEL, PATIENCE_S, Served, doubled, eventually, request


def streamed(value: float, timeout_us: int = 0, **fields: Any) -> pb.InferStreamRequest:
    return pb.InferStreamRequest(request=request(value, id=f"{value:g}", **fields), timeout_us=timeout_us)


class Stream:
    """One call of InferStream that sends bytes and reads messages."""

    def __init__(self, served: Served, timeout: float = PATIENCE_S) -> None:
        open_stream: Any = served.channel.stream_stream(
            "/opara.v1.InferenceService/InferStream", None, pb.InferStreamResponse.FromString
        )
        self.call: Any = open_stream(timeout=timeout)

    async def send(self, message: pb.InferStreamRequest | bytes) -> None:
        await self.call.write(message if isinstance(message, bytes) else message.SerializeToString())

    async def answer(self) -> pb.InferStreamResponse:
        answer: pb.InferStreamResponse = await self.call.read()
        assert answer is not grpc.aio.EOF, await self.call.code()  # type: ignore[attr-defined]
        return answer

    async def rest(self) -> AsyncIterator[pb.InferStreamResponse]:
        """All answers that are left, once nothing more is sent."""
        await self.call.done_writing()
        while (answer := await self.call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            yield answer


async def test_errors_answer_their_requests_and_leave_the_stream_open(served: Served) -> None:
    stream = Stream(served)
    await stream.send(streamed(1.0))
    await stream.send(streamed(2.0, model="nobody"))
    await stream.send(b"\xff\xff")
    await stream.send(streamed(3.0, inputs=[]))
    await stream.send(streamed(4.0, timeout_us=-1))
    await stream.send(streamed(5.0, timeout_us=int(PATIENCE_S * 1e6)))
    answers = {answer.id: answer async for answer in stream.rest()}
    assert await stream.call.code() is grpc.StatusCode.OK
    assert doubled(answers["1"].response) == [2.0]
    assert answers["2"].error.code == 5
    assert answers[""].error == pb.Error(code=3, message="the bytes are no opara.v1.InferStreamRequest")
    assert answers["3"].error == pb.Error(code=3, message="missing input: 'x'")
    assert answers["4"].error == pb.Error(code=3, message="timeout_us must not be negative, got -1")
    assert doubled(answers["5"].response) == [10.0]
    assert len(answers) == 6


async def test_what_is_quick_overtakes_what_waits(served: Served) -> None:
    held = await served.hold()
    stream = Stream(served)
    await stream.send(streamed(1.0))
    await stream.send(streamed(2.0, model="nobody"))
    assert (await stream.answer()).id == "2"
    served.device.gate.set()
    assert (await stream.answer()).id == "1"
    await held


async def test_a_stream_has_a_bounded_number_in_flight(served: Served) -> None:
    held = await served.hold()
    stream = Stream(served)
    number = 3 * STREAM_IN_FLIGHT
    for value in range(number):
        await stream.send(streamed(float(value)))
    await eventually(lambda: served.waiting() == STREAM_IN_FLIGHT)
    assert await served.health() == 1  # time for more to arrive, if more could
    assert served.waiting() == STREAM_IN_FLIGHT
    served.device.gate.set()
    answers = {answer.id: doubled(answer.response) async for answer in stream.rest()}
    assert answers == {f"{value}": [2.0 * value] for value in range(number)}
    await held


async def test_a_request_that_is_late_is_answered_so_and_not_executed(served: Served) -> None:
    held = await served.hold()
    stream = Stream(served)
    await stream.send(streamed(1.0, timeout_us=1))
    await stream.send(streamed(2.0))
    await eventually(lambda: served.waiting() >= 1)
    served.device.gate.set()
    answers = {answer.id: answer async for answer in stream.rest()}
    assert answers["1"].error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert doubled(answers["2"].response) == [4.0]
    assert served.sample("opara_rows_total", model=MODEL) == 2
    await held


async def waiting_stream(served: Served, timeout: float = 1.0) -> Stream:
    """One whose ten requests are in the queue, which has to be held. Where its deadline passes before they are, another
    has twice the time, once nothing is left of the first."""
    stream = Stream(served, timeout)
    with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):  # it is over
        for value in range(10):
            await stream.send(streamed(float(value)))
    await eventually(lambda: served.waiting() == 10 or stream.call.done())
    if served.waiting() == 10:
        return stream
    await eventually(lambda: served.waiting() == 0)
    return await waiting_stream(served, 2 * timeout)


@pytest.mark.parametrize("ended_by", ["deadline", "client"])
async def test_a_stream_that_is_over_frees_all_its_places(served: Served, ended_by: str) -> None:
    held = await served.hold()
    stream = await waiting_stream(served, 1.0 if ended_by == "deadline" else PATIENCE_S)
    if ended_by == "client":
        stream.call.cancel()
    await eventually(lambda: served.waiting() == 0)
    served.device.gate.set()
    assert await held == [2.0]
    assert await served.infer(1.0) == [2.0]
    assert served.sample("opara_rows_total", model=MODEL) == 2


async def test_a_client_that_is_gone_in_mid_answer_is_no_error_of_ours(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(10):
        stream = Stream(served)
        for value in range(200):
            await stream.send(streamed(float(value)))
        await stream.answer()
        stream.call.cancel()
    assert await served.infer(1.0) == [2.0]
    await eventually(lambda: served.waiting() == 0)
    await served.app.stop()
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_stopping_answers_what_was_read_and_ends_the_stream(served: Served) -> None:
    held = await served.hold()
    stream = Stream(served)
    for value in range(3):
        await stream.send(streamed(float(value)))
    await eventually(lambda: served.waiting() == 3)
    stopping = asyncio.create_task(served.app.stop())
    await asyncio.sleep(0)
    served.device.gate.set()
    assert sorted([(await stream.answer()).id for _ in range(3)]) == ["0", "1", "2"]
    assert await stream.call.code() is grpc.StatusCode.UNAVAILABLE
    assert await held == [2.0]
    await stopping
