"""The queue alone: the test takes the executor's part, and moves the clock."""

from __future__ import annotations

import gc
from math import inf
from weakref import ref

import numpy as np
import pytest

from opara_server.engine.spec import TensorSpec
from opara_server.serving.errors import (
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidInput,
    ModelUnavailable,
    Overloaded,
)
from opara_server.serving.rows import Rows
from tests.serving.fakes import Answer, rows_of
from tests.serving.queues import Queue, shape


@pytest.mark.parametrize(
    ("requests", "batches"),
    [
        ([1], [([1], 1)]),
        ([2], [([2], 4)]),
        ([1, 1, 1, 1], [([1, 1, 1, 1], 4)]),
        ([5], [([5], 8)]),
        ([5, 4, 3], [([5], 8), ([4, 3], 8)]),  # 4 fits a batch whole, so it waits for one; nobody overtakes it
        ([8, 1], [([8], 8), ([1], 1)]),
        ([20], [([8], 8), ([8], 8), ([4], 4)]),
        ([3, 20, 2], [([3, 5], 8), ([8], 8), ([7], 8), ([2], 4)]),  # what is split anyway fills the room that is left
    ],
)
def test_requests_are_packed_in_order_into_the_smallest_bucket(
    requests: list[int], batches: list[tuple[list[int], int]]
) -> None:
    queue = Queue()
    for rows in requests:
        queue.submit(rows)
    assert [shape(queue.take()) for _ in batches] == batches
    assert queue.batcher.take() is None


def test_a_split_request_is_answered_once_in_order() -> None:
    queue = Queue()
    sent = rows_of(19)
    answer = queue.submit(sent)
    for _ in range(2):
        queue.answer(queue.take())
        assert not answer.there
    queue.answer(queue.take())
    assert answer.outcome() == sent


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (Rows((b"",), 0), "no rows"),
        (Rows((b"\0" * 8 * 65,), 65), "65 rows, the model takes at most 64"),
        (Rows((b"\0" * 7,), 1), "'x' has 7 bytes, expected 8"),
        (Rows((b"\0" * 8, b""), 1), "2 inputs, the model takes 1"),
    ],
)
def test_rows_that_would_harm_a_batch_are_refused(rows: Rows, text: str) -> None:
    queue = Queue()
    error = queue.submit(rows).error()
    assert isinstance(error, InvalidInput)
    assert text in str(error)
    assert (queue.woken, queue.batcher.take()) == (0, None)


def test_every_input_is_checked() -> None:
    queue = Queue(inputs=(TensorSpec("x", "float32", (2,)), TensorSpec("y", "float32", (3,))))
    assert not queue.submit(Rows((b"\0" * 16, memoryview(b"\0" * 24)), 2)).there
    error = queue.submit(Rows((b"\0" * 16, memoryview(b"\0" * 23)), 2)).error()
    assert str(error) == "input 'y' has 23 bytes, expected 24 for 2 rows"


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8"])
@pytest.mark.parametrize(("low", "high"), [(-2, 10), (0, 10), (2, 10), (0, 200)])
@pytest.mark.parametrize("index", [0, 1, 2, 9, 10, 127, -128, -3, -2, -1])
def test_integers_outside_their_declared_range_are_refused(dtype: str, low: int, high: int, index: int) -> None:
    index = index % 256 if dtype == "uint8" else index
    queue = Queue(inputs=(TensorSpec("ids", dtype, (2,), low, high),))
    answer = queue.submit(Rows((np.array([3, index], dtype).tobytes(),), 1))
    refused = not low <= index < high
    assert answer.there == refused
    if refused:
        assert str(answer.error()) == f"input 'ids' has values outside [{low}, {high})"


def test_the_executor_is_woken_by_the_first_row_and_by_the_one_that_fills_a_batch() -> None:
    queue, woken = Queue(buckets=(1, 4, 8)), []
    for count in (1, 3, 3, 2, 8, 8):
        queue.submit(count)
        woken.append(queue.woken)
    assert woken == [1, 1, 1, 2, 2, 2]
    while queue.batcher.take() is not None:
        pass
    queue.submit(9)
    assert queue.woken == 3


def test_a_full_queue_refuses_and_recovers() -> None:
    queue = Queue(max_queue_rows=10)
    queue.submit(8)
    assert isinstance(queue.submit(3).error(), Overloaded)
    assert not queue.submit(2).there
    queue.take()
    assert not queue.submit(8).there


def test_a_deadline_in_the_past_is_refused_at_submit() -> None:
    queue = Queue()
    assert isinstance(queue.submit(1, deadline=queue.now).error(), DeadlineExceeded)
    assert queue.batcher.take() is None


def test_a_deadline_that_passes_in_the_queue_is_not_executed() -> None:
    queue = Queue()
    late, patient = queue.submit(1, deadline=queue.now + 1), queue.submit(1)
    queue.now += 2
    assert shape(queue.take()) == ([1], 1)
    assert isinstance(late.error(), DeadlineExceeded)
    assert not patient.there


def test_what_cannot_be_finished_in_time_is_not_begun() -> None:
    queue = Queue()
    for bucket, seconds in ((1, 0.2), (4, 0.4), (8, 0.5), (8, 3.0)):  # one slow run changes nothing
        queue.batcher.ran(bucket, seconds)
    queue.submit(8)
    late, in_time = (queue.submit(8, deadline=queue.now + seconds) for seconds in (1.0, 1.6))
    assert shape(queue.take()) == ([8], 8)
    queue.now += 0.6
    assert shape(queue.take()) == ([8], 8)
    assert isinstance(late.error(), DeadlineExceeded)
    assert not in_time.there


def test_a_larger_bucket_never_makes_a_request_late() -> None:
    queue = Queue()
    queue.batcher.ran(1, 0.1)
    queue.batcher.ran(4, 1.0)
    hurried = queue.submit(1, deadline=queue.now + 0.5)
    queue.submit(1)
    assert shape(queue.take()) == ([1], 1)
    assert not hurried.there
    assert shape(queue.take()) == ([1], 1)


def test_cancelling_frees_the_rows_at_once() -> None:
    queue = Queue(max_queue_rows=8)
    answer = Answer()
    ticket = queue.batcher.submit(rows_of(8), None, answer)
    assert isinstance(queue.submit(1).error(), Overloaded)
    ticket.cancel()
    ticket.cancel()
    assert isinstance(answer.error(), Cancelled)
    assert not queue.submit(8).there


def test_cancelling_in_flight_drops_the_answer_and_the_rest() -> None:
    queue = Queue()
    answer = Answer()
    ticket = queue.batcher.submit(rows_of(12), None, answer)
    neighbour = queue.submit(1)
    batch = queue.take()
    ticket.cancel()
    queue.answer(batch)
    assert isinstance(answer.error(), Cancelled)
    queue.answer(queue.take())
    assert isinstance(neighbour.outcome(), Rows)
    assert queue.batcher.take() is None


def test_a_failing_batch_fails_its_requests_only() -> None:
    queue = Queue()
    split, waiting = queue.submit(12), queue.submit(8)
    queue.batcher.fail(queue.take(), InternalError())
    assert isinstance(split.error(), InternalError)
    assert shape(queue.take()) == ([8], 8)
    assert not waiting.there


def test_an_idle_device_does_not_wait() -> None:
    queue = Queue()
    assert queue.batcher.ready(queue.now) is None
    queue.submit(1)
    assert queue.batcher.ready(queue.now) == queue.now


def test_the_queue_delay_ends_with_time_a_full_batch_a_hurried_request_or_the_end() -> None:
    def due(*requests: tuple[int, float | None], close: bool = False, queue_timeout_s: float = inf) -> float:
        queue = Queue(delay_s=2.0, queue_timeout_s=queue_timeout_s)
        queue.batcher.ran(8, 1.0)
        for rows, deadline in requests:
            queue.submit(rows, None if deadline is None else queue.now + deadline)
        if close:
            queue.batcher.close(drop_queued=False)
        ready = queue.batcher.ready(queue.now)
        assert ready is not None
        return ready - queue.now

    assert due((1, None)) == 2.0
    assert due((1, 3.5)) == 2.0
    assert due((1, 2.5)) == 0.0
    assert due((4, None), (3, None)) == 2.0
    assert due((4, None), (4, None)) == 0.0
    assert due((1, None), close=True) == 0.0
    assert due((1, None), queue_timeout_s=1.9) == 0.0
    assert due((1, None), queue_timeout_s=2.1) == 2.0


def test_the_queue_delay_is_that_of_the_first_that_waits() -> None:
    queue = Queue(delay_s=2.0)
    first = queue.batcher.submit(rows_of(1), None, Answer())
    queue.now += 1
    queue.submit(1)
    assert queue.batcher.ready(queue.now) == queue.now + 1
    first.cancel()
    assert queue.batcher.ready(queue.now) == queue.now + 2
    queue.take()
    queue.now += 1
    queue.submit(1)
    assert queue.batcher.ready(queue.now) == queue.now + 2


def test_closing_refuses_new_requests_and_keeps_or_drops_the_queued() -> None:
    queue = Queue()
    kept = queue.submit(1)
    queue.batcher.close(drop_queued=False)
    assert isinstance(queue.submit(1).error(), ModelUnavailable)
    assert not kept.there
    queue.batcher.close(drop_queued=True)
    assert isinstance(kept.error(), ModelUnavailable)
    assert queue.batcher.take() is None


def test_done_may_submit_again() -> None:
    queue = Queue()
    again: list[Answer] = []
    queue.batcher.submit(rows_of(1), None, lambda _: again.append(queue.submit(1)))
    queue.answer(queue.take())
    assert len(again) == 1
    queue.answer(queue.take())
    assert isinstance(again[0].outcome(), Rows)


def test_a_transport_that_fails_to_take_its_answer_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue()

    def broken(_: object) -> None:
        raise RuntimeError("Event loop is closed")

    queue.batcher.submit(rows_of(1), None, broken)
    neighbour = queue.submit(1)
    queue.answer(queue.take())
    assert isinstance(neighbour.outcome(), Rows)
    assert "failed to take an answer" in caplog.text


def test_the_counters_balance() -> None:
    queue = Queue(max_queue_rows=20)
    answers = [
        queue.submit(3),
        queue.submit(0),
        queue.submit(3, deadline=queue.now - 1),
        queue.submit(3),
        queue.submit(90),
    ]
    cancelled = queue.batcher.submit(rows_of(1), None, Answer())
    queue.submit(19)
    queue.answer(queue.take())
    queue.submit(8)
    queue.batcher.fail(queue.take(), InternalError())
    cancelled.cancel()
    queue.submit(2)
    counts = queue.batcher.counts
    assert (counts.received, counts.answered, counts.failed, counts.cancelled, counts.refused, counts.pending) == (
        9,
        3,
        1,
        0,
        4,
        1,
    )
    assert [a.there for a in answers] == [True] * 5


def test_what_is_refused_is_not_kept() -> None:
    queue, rows = Queue(), memoryview(bytearray(3))
    seen = ref(rows)
    gc.disable()
    try:
        error = queue.submit(Rows((rows,), 1)).error()
        del rows
        assert isinstance(error, InvalidInput)
        assert seen() is None, "the error's traceback has it"
    finally:
        gc.enable()
