"""Streams, synchronous and asyncio: many in flight, matched by id, errors that answer one request only."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing
from typing import Any

import numpy as np
import pytest

from opara_client import (
    AsyncOparaClient,
    DeadlineExceeded,
    InferRequest,
    InferResult,
    Internal,
    InvalidArgument,
    NotFound,
    OparaClient,
    OparaError,
    ResourceExhausted,
    Unavailable,
)
from opara_client.messages import decode_answer
from opara_protos.v1 import inference_pb2 as pb
from tests.client.fake_server import PATIENCE_S, FakeServer

Answers = list[tuple[str, InferResult | OparaError]]
Run = Callable[..., Answers]


def request(value: float = 1, model: str = "double", **more: Any) -> InferRequest:
    return InferRequest(model, {"x": np.full((1, 2), value, np.float32)}, **more)


@pytest.fixture(params=["sync", "asyncio"])
def run(request: pytest.FixtureRequest, server: FakeServer) -> Run:
    """Runs requests on a stream to the end."""

    def run_sync(requests: Any, client: dict[str, Any] | None = None, **options: Any) -> Answers:
        with OparaClient(server.target, **{"timeout": PATIENCE_S, **(client or {})}) as connected:
            return list(connected.infer_stream(requests, **options))

    async def run_async(requests: Any, client: dict[str, Any] | None = None, **options: Any) -> Answers:
        async with AsyncOparaClient(server.target, **{"timeout": PATIENCE_S, **(client or {})}) as connected:
            return [answer async for answer in connected.infer_stream(requests, **options)]

    if request.param == "sync":
        return run_sync
    return lambda *args, **options: asyncio.run(run_async(*args, **options))


def codes(answers: Answers) -> dict[str, str]:
    return {id_: answer.code.name if isinstance(answer, OparaError) else "OK" for id_, answer in answers}


def test_answers_come_in_any_order_and_match_by_id(run: Run) -> None:
    requests = [request(n, "late" if n % 3 == 0 else "double", id=f"r{n}") for n in range(50)]
    answers = run(requests)
    assert [id_ for id_, _ in answers] != [r.id for r in requests]
    assert len(answers) == 50
    by_id = dict(answers)
    for n in range(50):
        result = by_id[f"r{n}"]
        assert isinstance(result, InferResult)
        np.testing.assert_array_equal(result["x"], np.full((1, 2), 2 * n, np.float32))


def test_requests_without_an_id_get_their_position(run: Run) -> None:
    assert codes(run([request(), request(id="mine"), request()])) == {"0": "OK", "mine": "OK", "2": "OK"}


def test_an_error_answers_its_request_and_leaves_the_stream_open(server: FakeServer, run: Run) -> None:
    wrong = InferRequest("double", {"x": np.zeros((1, 2))})
    impossible = InferRequest("double", {"x": np.array([["a"]])})
    answers = run([request(), request(model="nobody"), wrong, impossible, request()])
    assert codes(answers) == {"0": "OK", "1": "NOT_FOUND", "2": "INVALID_ARGUMENT", "3": "INVALID_ARGUMENT", "4": "OK"}
    assert isinstance(answers[1][1], NotFound)
    assert isinstance(answers[2][1], InvalidArgument)
    assert server.seen.calls["InferStream"] == 1


def test_bfloat16_inputs_are_rounded_as_in_infer(run: Run) -> None:
    ((_, result),) = run([InferRequest("echo-bfloat16", {"x": np.array([0.1], np.float32)})])
    assert isinstance(result, InferResult)
    assert result["x"].tolist() == [0.10009765625]


def test_each_request_carries_its_time_limit(server: FakeServer, run: Run) -> None:
    run([request(), request(timeout=0.5), request(timeout=0)], client={"timeout": PATIENCE_S})
    assert [item.timeout_us for item in server.seen.streamed] == [round(PATIENCE_S * 1e6), 500_000, 1]
    run([request()], client={"timeout": None})
    assert server.seen.streamed[-1].timeout_us == 0


def test_no_requests_no_answers(run: Run) -> None:
    assert run([]) == []


def test_what_the_requests_raise_comes_after_the_answers_before(client: OparaClient) -> None:
    def failing() -> Iterator[InferRequest]:
        yield request(id="a")
        yield request(id="b")
        raise LookupError("no more images")

    answers = client.infer_stream(failing())
    assert [next(answers)[0], next(answers)[0]] == ["a", "b"]
    with pytest.raises(LookupError, match="no more images"):
        next(answers)


async def test_what_asynchronous_requests_raise_comes_after_the_answers_before(aclient: AsyncOparaClient) -> None:
    async def failing() -> AsyncIterator[InferRequest]:
        yield request(id="a")
        yield request(id="b")
        raise LookupError("no more images")

    answers = aclient.infer_stream(failing())
    assert [(await anext(answers))[0], (await anext(answers))[0]] == ["a", "b"]
    with pytest.raises(LookupError, match="no more images"):
        await anext(answers)


@pytest.mark.parametrize(("model", "message"), [("abort", "draining"), ("hangup", "ended the stream")])
def test_a_broken_stream_is_unavailable_and_not_tried_again(
    server: FakeServer, run: Run, model: str, message: str
) -> None:
    for attempt in range(1, 11):  # whether grpc.aio hides the status is a matter of timing
        with pytest.raises(Unavailable, match=message):
            run([request(), request(model=model), *[request()] * 10])
        assert server.seen.calls["InferStream"] == attempt


def test_a_request_over_the_limit_breaks_the_stream(run: Run) -> None:
    big = InferRequest("double", {"x": np.zeros((1, 1000), np.float32)})
    with pytest.raises(ResourceExhausted):
        run([request(), big, request()], client={"max_message_bytes": 2000})


def test_requests_are_read_a_bounded_number_ahead(client: OparaClient) -> None:
    taken = 0

    def endless() -> Iterator[InferRequest]:
        nonlocal taken
        while True:
            taken += 1
            yield request()

    with closing(client.infer_stream(endless(), max_in_flight=3)) as answers:
        for answered in range(1, 50):
            next(answers)
            assert answered <= taken <= answered + 3


async def test_asynchronous_requests_are_read_a_bounded_number_ahead(aclient: AsyncOparaClient) -> None:
    taken = 0

    async def endless() -> AsyncIterator[InferRequest]:
        nonlocal taken
        while True:
            taken += 1
            yield request()

    async with aclosing(aclient.infer_stream(endless(), max_in_flight=3)) as answers:
        for answered in range(1, 50):
            await anext(answers)
            assert answered <= taken <= answered + 3


def test_leaving_early_frees_the_server_and_the_thread(server: FakeServer, client: OparaClient) -> None:
    ended = threading.Event()

    def watched() -> Iterator[InferRequest]:
        try:
            while True:
                yield request()
        finally:
            ended.set()

    requests = watched()
    with closing(client.infer_stream(requests, max_in_flight=2)) as answers:
        next(answers)
    assert server.seen.left.wait(PATIENCE_S)
    del requests, answers
    assert ended.wait(PATIENCE_S)  # once nobody holds the requests: their thread let go of them


async def test_leaving_early_frees_the_server_and_the_task(server: FakeServer, aclient: AsyncOparaClient) -> None:
    async def forever() -> AsyncIterator[InferRequest]:
        yield request()
        await asyncio.Event().wait()

    before = asyncio.all_tasks()
    async with aclosing(aclient.infer_stream(forever())) as answers:
        await anext(answers)
        during = asyncio.all_tasks() - before
        assert during
    # gRPC's own tasks end once its core has reported the cancellation.
    _, left = await asyncio.wait(during, timeout=PATIENCE_S)
    assert not left
    assert asyncio.all_tasks() == before
    assert await asyncio.to_thread(server.seen.left.wait, PATIENCE_S)


async def test_requests_that_come_later_keep_the_stream_open(aclient: AsyncOparaClient) -> None:
    queue: asyncio.Queue[InferRequest | None] = asyncio.Queue()

    async def from_queue() -> AsyncIterator[InferRequest]:
        while (item := await queue.get()) is not None:
            yield item

    answers = aclient.infer_stream(from_queue())
    for n in range(3):
        queue.put_nowait(request(n))
        id_, _ = await anext(answers)  # the next one is asked for only now
        assert id_ == str(n)
    queue.put_nowait(None)
    assert [answer async for answer in answers] == []


def test_the_stream_has_a_deadline_of_its_own(client: OparaClient) -> None:
    forever = threading.Event()

    def stuck() -> Iterator[InferRequest]:
        yield request()
        forever.wait(60)

    answered: Answers = []
    with pytest.raises(DeadlineExceeded):
        answered.extend(client.infer_stream(stuck(), timeout=0.5))
    forever.set()
    assert len(answered) <= 1


def test_a_broken_tensor_is_the_error_of_its_request() -> None:
    bad = pb.Tensor(name="y", data_type=pb.DATA_TYPE_INT32, shape=[2], data=b"123")
    answer = decode_answer(pb.InferStreamResponse(id="1", response=pb.InferResponse(outputs=[bad])))
    assert isinstance(answer, Internal)
