"""Several batches of a model in the air at once, on a device whose queues are out of step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opara_server.engine.spec import TensorSpec
from opara_server.serving.batcher import Batcher, Rows
from opara_server.serving.errors import InternalError, ModelUnavailable
from opara_server.serving.lanes import DIRECT_BYTES
from tests.serving.fakes import (
    PATIENCE_S,
    Answer,
    Clock,
    Core,
    FakeCompiled,
    FakeDevice,
    X,
    doubled,
    rows_of,
    wait_for,
)
from tests.serving.queued import QueuedDevice


@pytest.fixture
def device() -> Iterator[QueuedDevice]:
    device = QueuedDevice()
    yield device
    device.gate.set()
    device.close()


def submit(batcher: Batcher, count: int) -> tuple[Rows, Answer]:
    rows, answer = rows_of(count), Answer()
    batcher.submit(rows, None, answer)
    return rows, answer


def wrong(asked: list[tuple[Rows, Answer]]) -> int:
    """How many answers are not theirs."""
    outcomes = [(rows, answer.outcome(), answer) for rows, answer in asked]
    return sum(
        not (isinstance(got, Rows) and np.array_equal(answer.array(), doubled(rows))) for rows, got, answer in outcomes
    )


def flood(device: QueuedDevice, lanes: int, sizes: list[int]) -> int:
    """Wrong answers to requests of these sizes, submitted all at once."""
    core = Core()
    batcher = core.serve(FakeCompiled(device=device), lanes=lanes)
    asked = [submit(batcher, size) for size in sizes]
    found = wrong(asked)
    assert core.executor.stop(PATIENCE_S)
    assert batcher.counts.pending == 0
    device.close()
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_every_answer_is_its_own(seed: int, lanes: int, sizes: list[int]) -> None:
    assert flood(QueuedDevice(seed), lanes, sizes) == 0


def test_a_forgotten_wait_would_show() -> None:
    device = QueuedDevice(longest_delay_s=0.002)
    device.faulty = True
    assert flood(device, 2, [8] * 40) > 0


def test_a_batch_is_copied_in_while_another_runs(core: Core, device: QueuedDevice) -> None:
    batcher = core.serve(FakeCompiled(device=device), lanes=2)
    first = held(batcher, device)
    second = submit(batcher, 8)
    wait_for(lambda: number(second) in device.copied)
    third = submit(batcher, 8)
    wait_for(lambda: device.copied.count(number(second)) == 1)
    assert number(third) not in device.copied  # there is no lane for it
    assert not any(answer.there for _, answer in (first, second, third))
    device.gate.set()
    assert wrong([first, second, third]) == 0
    assert device.replays == [1, 8, 8]


def test_a_third_batch_joins_two_once_it_is_full(core: Core, device: QueuedDevice) -> None:
    batcher = core.serve(FakeCompiled(device=device), lanes=3)
    asked = [held(batcher, device), submit(batcher, 3)]
    wait_for(lambda: number(asked[1]) in device.copied)
    asked += [submit(batcher, 5), submit(batcher, 2)]
    device.gate.set()
    assert wrong(asked) == 0
    assert device.replays == [1, 4, 8], "the rows that could only wait for the device waited for others"
    asked = [held(batcher, device), submit(batcher, 8)]
    wait_for(lambda: number(asked[1]) in device.copied)
    asked.append(submit(batcher, 8))
    wait_for(lambda: number(asked[2]) in device.copied)
    device.gate.set()
    assert wrong(asked) == 0


def test_a_model_with_few_rows_is_not_passed_over_by_one_with_many(core: Core, device: QueuedDevice) -> None:
    few = core.serve(FakeCompiled("few", device=device), lanes=3)
    many = core.serve(FakeCompiled("many", device=device), lanes=3)
    asked = [held(many, device), submit(many, 8)]
    wait_for(lambda: number(asked[1]) in device.copied)
    asked += [submit(few, 1), submit(many, 8)]
    device.gate.set()
    assert wrong(asked) == 0
    assert device.replays == [1, 8, 1, 8]


def test_one_lane_begins_a_batch_after_the_last_is_answered(core: Core, device: QueuedDevice) -> None:
    batcher = core.serve(FakeCompiled(device=device), lanes=1)
    asked = [held(batcher, device), submit(batcher, 8), submit(batcher, 8)]
    device.gate.set()
    assert wrong(asked) == 0
    assert {answer.thread for _, answer in asked} == {"opara-executor"}


def test_a_model_is_charged_for_what_its_batches_took_whatever_was_expected_of_them(core: Core) -> None:
    clock, seconds = Clock(), iter((0.25, 0.5, 0.125, 1.0))  # the least seen is expected

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        clock.now += next(seconds)
        return (x * 2,)

    worker = core.worker(FakeCompiled(device=FakeDevice(clock), forward=forward), lanes=2)
    core.executor.run(lambda: core.executor.attach(worker)).result(PATIENCE_S)
    charged = []
    for _ in range(4):
        assert wrong([submit(worker.batcher, 1)]) == 0
        charged.append(core.executor.run(lambda: worker.share.start).result(PATIENCE_S))
    assert charged == [0.25, 0.75, 0.875, 1.875]


def test_models_take_turns_in_the_air(core: Core, device: QueuedDevice) -> None:
    other = FakeCompiled("other", device=device)
    batchers = [core.serve(FakeCompiled("one", device=device), lanes=2), core.serve(other, lanes=3)]
    asked = [submit(batchers[i % 2], 1 + i % 9) for i in range(60)]
    assert wrong(asked) == 0


def test_an_error_in_the_air_fails_what_is_there_and_frees_the_lanes(core: Core, device: QueuedDevice) -> None:
    batcher = core.serve(FakeCompiled(device=device), lanes=2)
    first = held(batcher, device)
    second = submit(batcher, 8)
    wait_for(lambda: number(second) in device.copied)
    device.error = RuntimeError("always")
    device.gate.set()
    for _, answer in (first, second):
        assert isinstance(answer.error(), InternalError)
    core.executor.run(lambda: None).result(PATIENCE_S)
    device.error = device.failed = None
    assert wrong([submit(batcher, 3) for _ in range(5)]) == 0
    assert batcher.counts.failed == 2


def test_a_lost_device_is_noticed_in_the_air(device: QueuedDevice) -> None:
    core = Core()
    lost: list[str] = []

    def forget(name: str) -> None:
        lost.append(name)
        core.executor.detach(name)

    core.executor.on_lost(forget)
    batcher = core.serve(FakeCompiled(device=device), lanes=2)
    asked = [held(batcher, device), submit(batcher, 8)]
    wait_for(lambda: number(asked[1]) in device.copied)
    device.error, device.lost = RuntimeError("gone"), True
    device.gate.set()
    assert all(isinstance(answer.error(), InternalError) for _, answer in asked)
    core.executor.run(lambda: None).result(PATIENCE_S)  # that it still runs, and has seen both
    assert lost == ["double"]
    core.executor.stop(PATIENCE_S)


def test_jobs_find_nothing_in_the_air(core: Core, device: QueuedDevice) -> None:
    batcher = core.serve(FakeCompiled(device=device), lanes=2)
    asked = [held(batcher, device), submit(batcher, 8)]
    wait_for(lambda: number(asked[1]) in device.copied)
    job = core.executor.run(lambda: (len(device.replays), [answer.there for _, answer in asked]))
    device.gate.set()
    assert job.result(PATIENCE_S) == (2, [True, True])


def test_finishing_a_model_answers_what_is_in_the_air_and_what_waits(core: Core, device: QueuedDevice) -> None:
    batcher = core.serve(FakeCompiled(device=device), lanes=2)
    asked = [held(batcher, device), *(submit(batcher, 8) for _ in range(4))]
    device.gate.set()
    core.executor.run(lambda: core.executor.finish("double")).result(PATIENCE_S)
    assert wrong(asked) == 0
    assert isinstance(submit(batcher, 1)[1].error(), ModelUnavailable)


def test_stopping_answers_what_is_in_the_air(device: QueuedDevice) -> None:
    core = Core()
    batcher = core.serve(FakeCompiled(device=device), lanes=3)
    asked = [held(batcher, device), *(submit(batcher, 8) for _ in range(4))]
    device.gate.set()
    assert core.executor.stop(PATIENCE_S)
    assert wrong(asked) == 0
    assert device.bound == 0


def test_a_batch_that_cannot_be_begun_leaves_its_lane(core: Core) -> None:
    model = FakeCompiled()
    batcher = core.serve(model, lanes=2)
    model.device.error = RuntimeError("no launch")
    for _ in range(5):
        assert isinstance(submit(batcher, 1)[1].error(), InternalError)
    model.device.error = None
    assert wrong([submit(batcher, 2) for _ in range(5)]) == 0


def test_several_inputs_and_outputs_pass_beside(core: Core, device: QueuedDevice) -> None:
    specs = (TensorSpec("a", "float32", (2,)), TensorSpec("b", "int64", (3,), 0, 9))
    model = FakeCompiled(
        inputs=specs, outputs=specs[::-1], forward=lambda a, b: (b + 1, a * 2), device=device, buckets=(1, 4)
    )
    batcher = core.serve(model, lanes=2)
    asked = []
    for index in range(20):
        a, b = np.full((2, 2), index, np.float32), np.full((2, 3), index % 9, np.int64)
        answer = Answer()
        batcher.submit(Rows((a.tobytes(), b.tobytes()), 2), None, answer)
        asked.append(((b + 1).tobytes(), (a * 2).tobytes(), answer))
    for *expected, answer in asked:
        rows = answer.outcome()
        assert isinstance(rows, Rows)
        assert list(rows.tensors) == expected


def held(batcher: Batcher, device: QueuedDevice) -> tuple[Rows, Answer]:
    """A request that sits in a replay until the gate opens."""
    device.gate.clear()
    asked = submit(batcher, 1)
    assert device.entered.acquire(timeout=PATIENCE_S)
    return asked


def number(asked: tuple[Rows, Answer]) -> float:
    return float(np.frombuffer(asked[0].tensors[0], np.float32)[0])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=25))
def test_rows_from_anywhere_find_their_place(seed: int, requests: list[tuple[int, bool]]) -> None:
    """Some requests lie where the device copies from by itself, others go through the lane's host buffers."""
    device, wide = QueuedDevice(seed), TensorSpec("x", "float32", (DIRECT_BYTES // 8,))
    device.pins = True
    core = Core()
    model = FakeCompiled(inputs=(wide, X), outputs=(wide, X), forward=lambda a, b: (a * 2, b * 2), device=device)
    batcher = core.serve(model, lanes=2)
    asked = []
    for number, (count, pinned) in enumerate(requests, 1):
        values = np.repeat(np.arange(count, dtype=np.float32)[:, None] + number * 100, wide.shape[0], axis=1)
        narrow = values[:, :2].tobytes()
        answer = Answer()
        given_as = memoryview(bytearray(values.tobytes())) if pinned else values.tobytes()
        batcher.submit(Rows((given_as, narrow), count), None, answer)
        asked.append((values, answer))
    for values, answer in asked:
        np.testing.assert_array_equal(answer.array(), values * 2)
        np.testing.assert_array_equal(answer.array(1), values[:, :2] * 2)
    assert core.executor.stop(PATIENCE_S)
    device.close()


def test_few_bytes_go_through_the_hosts_buffer(core: Core, device: QueuedDevice) -> None:
    device.pins = True
    batcher = core.serve(FakeCompiled(device=device), lanes=2)
    values = np.array([[5.0, 6.0]], np.float32)
    answer = Answer()
    batcher.submit(Rows((memoryview(values.tobytes()),), 1), None, answer)
    np.testing.assert_array_equal(answer.array(), values * 2)
    assert device.copied[0] == 5.0
