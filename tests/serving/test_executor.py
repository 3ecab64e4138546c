"""Requests through the batcher, the executor's thread and a lane, to a real model of one line."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from opara_server.serving.batcher import Batcher, Rows
from opara_server.serving.errors import Cancelled, DeadlineExceeded, InternalError, ModelUnavailable
from tests.serving.fakes import PATIENCE_S, Answer, Clock, Core, FakeCompiled, FakeDevice, doubled, rows_of, wait_for


def submit(batcher: Batcher, rows: Rows | int, deadline: float | None = None) -> Answer:
    answer = Answer()
    batcher.submit(rows_of(rows) if isinstance(rows, int) else rows, deadline, answer)
    return answer


def hold(batcher: Batcher, model: FakeCompiled) -> Answer:
    """A request that sits in a replay until the gate opens."""
    model.device.gate.clear()
    answer = submit(batcher, 1)
    assert model.device.entered.acquire(timeout=PATIENCE_S)
    return answer


def test_a_request_is_answered_on_the_executors_thread(core: Core) -> None:
    batcher = core.serve(FakeCompiled())
    rows = rows_of(3)
    answer = submit(batcher, rows)
    np.testing.assert_array_equal(answer.array(), doubled(rows))
    assert answer.thread == "opara-executor"


def test_requests_that_come_while_the_device_is_busy_share_a_batch(core: Core) -> None:
    model = FakeCompiled()
    batcher = core.serve(model)
    first = hold(batcher, model)
    waiting = [(rows, submit(batcher, rows)) for rows in map(rows_of, (2, 1, 3))]
    model.device.gate.set()
    for rows, answer in waiting:
        np.testing.assert_array_equal(answer.array(), doubled(rows))
    assert first.there
    assert model.device.replays == [1, 8]
    assert core.value("opara_batches_total", model="double") == 2
    assert core.value("opara_rows_total", model="double") == 7
    assert core.value("opara_padded_rows_total", model="double") == 2
    assert core.value("opara_replays_total", model="double", bucket="8", policy="opara") == 1


def test_a_request_larger_than_any_bucket_is_answered_whole(core: Core) -> None:
    model = FakeCompiled()
    rows = rows_of(30)
    np.testing.assert_array_equal(submit(core.serve(model), rows).array(), doubled(rows))
    assert model.device.replays == [8, 8, 8, 8]


def test_a_full_batch_ends_the_queue_delay(core: Core) -> None:
    model = FakeCompiled()
    batcher = core.serve(model, delay_s=3600.0)
    answers = [submit(batcher, 4) for _ in range(2)]
    assert all(isinstance(answer.outcome(), Rows) for answer in answers)
    assert model.device.replays == [8]


def test_the_queue_delay_itself_ends(core: Core) -> None:
    assert isinstance(submit(core.serve(FakeCompiled(), delay_s=0.02), 1).outcome(), Rows)


def test_a_request_whose_deadline_passes_meanwhile_is_not_executed(core: Core) -> None:
    model = FakeCompiled()
    batcher = core.serve(model)
    hold(batcher, model)
    deadline = time.monotonic() + 0.01
    late = submit(batcher, 8, deadline)
    wait_for(lambda: time.monotonic() > deadline)
    model.device.gate.set()
    assert isinstance(late.error(), DeadlineExceeded)
    assert model.device.replays == [1]


def test_cancelled_before_it_runs(core: Core) -> None:
    model = FakeCompiled()
    batcher = core.serve(model)
    hold(batcher, model)
    answer = Answer()
    batcher.submit(rows_of(1), None, answer).cancel()
    assert isinstance(answer.error(), Cancelled)
    model.device.gate.set()
    wait_for(lambda: batcher.counts.pending == 0)
    assert model.device.replays == [1]


def test_cancelled_while_it_runs(core: Core) -> None:
    model = FakeCompiled()
    batcher = core.serve(model)
    model.device.gate.clear()
    answer = Answer()
    ticket = batcher.submit(rows_of(1), None, answer)
    assert model.device.entered.acquire(timeout=PATIENCE_S)
    ticket.cancel()
    assert isinstance(answer.error(), Cancelled)
    model.device.gate.set()
    rows = rows_of(1)
    np.testing.assert_array_equal(submit(batcher, rows).array(), doubled(rows))
    assert len(answer.outcomes) == 1


def test_an_error_fails_its_batch_tells_nothing_and_leaves_the_rest_working(
    core: Core, caplog: pytest.LogCaptureFixture
) -> None:
    model = FakeCompiled()
    batcher = core.serve(model)
    model.device.error = RuntimeError("CUDA error at /secret/path.cu")
    errors = [submit(batcher, 1).error() for _ in range(2)]
    assert all(isinstance(error, InternalError) for error in errors)
    assert "secret" not in str(errors[0])
    assert str(errors[0]).removeprefix("internal error ") == caplog.records[0].__dict__["reference"]
    assert "/secret/path.cu" in caplog.text
    model.device.error = None
    rows = rows_of(2)
    np.testing.assert_array_equal(submit(batcher, rows).array(), doubled(rows))


def timed(name: str, clock: Clock, buckets: tuple[int, ...] = (1, 4, 8)) -> FakeCompiled:
    """Whose replays take a millisecond each, as its device tells."""

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        clock.now += 0.001
        return (x * 2,)

    return FakeCompiled(name, buckets, forward=forward, device=FakeDevice(clock))


def test_the_model_that_had_less_of_the_device_comes_first(core: Core) -> None:
    clock = Clock()
    first, second = (timed(name, clock, (1, 8)) for name in ("first", "second"))
    order: list[str] = []
    batchers = {name: core.serve(model) for name, model in (("first", first), ("second", second))}
    hold(batchers["first"], first)
    answers = []
    for name, rows in (("first", 24), ("second", 16), ("second", 8)):
        answers.append(Answer())
        batchers[name].submit(rows_of(rows), None, answers[-1])
    names = {id(first.device): "first", id(second.device): "second"}
    for model in (first, second):
        model.device.replays = Recorder(names[id(model.device)], order)
    clock.now += 0.2
    first.device.gate.set()
    for answer in answers:
        assert isinstance(answer.outcome(), Rows)
    assert order == ["second"] * 3 + ["first"] * 3


def test_idle_time_is_no_credit(core: Core) -> None:
    clock = Clock()
    busy, idle = timed("busy", clock), timed("idle", clock)
    batchers = {name: core.serve(model) for name, model in (("busy", busy), ("idle", idle))}
    order: list[str] = []
    for name, model in (("busy", busy), ("idle", idle)):
        model.device.replays = Recorder(name, order)
    answers = [hold(batchers["busy"], busy)]
    clock.now += 0.3
    busy.device.gate.set()
    answers[0].outcome()
    submit(batchers["busy"], 1).outcome()  # begins after those 0.3 s
    answers.append(hold(batchers["idle"], idle))
    answers += [submit(batchers[name], 1) for name in ("idle", "busy")]
    clock.now += 0.1
    idle.device.gate.set()
    for answer in answers:
        answer.outcome()
    assert order == ["busy", "busy", "idle", "busy", "idle"]


def test_batches_that_fail_take_time_too(core: Core) -> None:
    failing, other = FakeCompiled("failing"), timed("other", Clock())  # what fails has no times of its device's
    batchers = {name: core.serve(model) for name, model in (("failing", failing), ("other", other))}
    order: list[str] = []
    for name, model in (("failing", failing), ("other", other)):
        model.device.replays = Recorder(name, order)
    failing.device.error = RuntimeError("always")
    answers = [hold(batchers["failing"], failing)]
    answers += [submit(batchers[name], 8) for name in ("failing", "other", "other")]
    until = time.monotonic() + 0.05
    wait_for(lambda: time.monotonic() > until)
    failing.device.gate.set()
    for answer in answers:
        answer.outcome()
    assert order == ["failing", "other", "other", "failing"]


def test_nor_is_the_time_before_a_model_was_there(core: Core) -> None:
    clock = Clock()
    old, new = timed("old", clock), timed("new", clock)
    batcher = core.serve(old)
    order: list[str] = []
    for name, model in (("old", old), ("new", new)):
        model.device.replays = Recorder(name, order)
    first = hold(batcher, old)
    clock.now += 0.3
    old.device.gate.set()
    first.outcome()
    submit(batcher, 1).outcome()
    worker = core.worker(new)
    new.device.gate.clear()
    answers = [submit(worker.batcher, 8) for _ in range(2)]
    core.executor.run(lambda: core.executor.attach(worker)).result(PATIENCE_S)
    assert new.device.entered.acquire(timeout=PATIENCE_S)
    answers.append(submit(batcher, 1))
    clock.now += 0.1
    new.device.gate.set()
    for answer in answers:
        answer.outcome()
    assert order == ["old", "old", "new", "old", "new"]


class Recorder(list[int]):
    """A log of replays that also says whose they are in a log of all."""

    def __init__(self, name: str, order: list[str]) -> None:
        super().__init__()
        self._name, self._order = name, order

    def append(self, bucket: int) -> None:
        super().append(bucket)
        self._order.append(self._name)


def test_stop_finishes_what_was_accepted(core: Core) -> None:
    model = FakeCompiled()
    batcher = core.serve(model)
    accepted = [hold(batcher, model), *(submit(batcher, 5) for _ in range(4))]
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(core.executor.stop, PATIENCE_S)
        wait_for(lambda: core.executor.stopping)
        model.device.gate.set()
        assert stopped.result(PATIENCE_S)
    assert all(isinstance(answer.outcome(), Rows) for answer in accepted)
    assert isinstance(submit(batcher, 1).error(), ModelUnavailable)
    assert core.executor.run(lambda: None).cancelled()
    assert model.device.bound == 0


def test_stop_without_grace_refuses_what_is_queued(core: Core) -> None:
    model = FakeCompiled()
    batcher = core.serve(model)
    held = hold(batcher, model)
    queued = submit(batcher, 1)
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(core.executor.stop, 0.0)
        wait_for(lambda: core.executor.stopping)
        model.device.gate.set()
        assert not stopped.result(PATIENCE_S)
    assert isinstance(held.outcome(), Rows)
    assert isinstance(queued.error(), ModelUnavailable)


def test_stop_gives_up_on_a_device_that_hangs(core: Core) -> None:
    model = FakeCompiled()
    batcher = core.serve(model)
    hold(batcher, model)
    assert not core.executor.stop(0.0)
    model.device.gate.set()


def test_jobs_run_between_batches_on_the_executors_thread_with_no_device_bound(core: Core) -> None:
    model = FakeCompiled()
    batcher = core.serve(model)
    assert isinstance(submit(batcher, 1).outcome(), Rows)
    seen = core.executor.run(lambda: (threading.current_thread().name, model.device.bound)).result(PATIENCE_S)
    assert seen == ("opara-executor", 0)
    with pytest.raises(ZeroDivisionError):
        core.executor.run(lambda: 1 // 0).result(PATIENCE_S)
    assert isinstance(submit(batcher, 1).outcome(), Rows)


def test_after_each_job_a_batch_that_waits_has_its_turn(core: Core) -> None:
    model = FakeCompiled()
    batcher = core.serve(model)
    hold(batcher, model)
    jobs = [core.executor.run(lambda: len(model.device.replays)) for _ in range(3)]
    submit(batcher, 1)
    model.device.gate.set()
    assert [job.result(PATIENCE_S) for job in jobs] == [1, 2, 2]


def test_two_thousand_concurrent_requests_each_get_their_own_answer(core: Core) -> None:
    batcher = core.serve(FakeCompiled(), max_queue_rows=100_000)
    barrier = threading.Barrier(8)

    def many(seed: int) -> list[tuple[Rows, Answer]]:
        sizes = np.random.default_rng(seed).integers(1, 12, 250)
        barrier.wait(PATIENCE_S)
        return [(rows, submit(batcher, rows)) for rows in (rows_of(int(size)) for size in sizes)]

    with ThreadPoolExecutor(8) as pool:
        sent = [pair for pairs in pool.map(many, range(8)) for pair in pairs]
    for rows, answer in sent:
        np.testing.assert_array_equal(answer.array(), doubled(rows))
    counts = batcher.counts
    assert (counts.received, counts.answered, counts.pending) == (2000, 2000, 0)
    assert core.value("opara_rows_total", model="double") == sum(rows.count for rows, _ in sent)


def test_the_counters_balance_under_concurrent_cancels_deadlines_and_errors(core: Core) -> None:
    model = FakeCompiled()
    batcher = core.serve(model, max_queue_rows=40)
    answers: list[Answer] = []

    def many(seed: int) -> None:
        random = np.random.default_rng(seed)
        for kind in random.integers(0, 5, 200):
            answer = Answer()
            answers.append(answer)
            deadline = time.monotonic() + float(random.uniform(-0.001, 0.002)) if kind == 1 else None
            ticket = batcher.submit(rows_of(int(random.integers(0, 12))), deadline, answer)
            if kind == 2:
                ticket.cancel()
            if kind == 3:
                model.device.error = RuntimeError("now and then")
            if kind == 4:
                model.device.error = None
            if kind in (0, 4):
                answer.outcome()

    def one_of_each() -> None:
        """However the others came out, which is a matter of chance."""
        model.device.error = None
        answers.append(submit(batcher, 1))
        answers[-1].outcome()
        model.device.error = RuntimeError("for certain")
        answers.append(submit(batcher, 1))
        answers[-1].outcome()
        model.device.error = None
        answers.extend((hold(batcher, model), Answer(), submit(batcher, 0)))
        batcher.submit(rows_of(1), None, answers[-2]).cancel()
        model.device.gate.set()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(many, range(4)))
    for answer in answers:
        answer.outcome()
    while model.device.entered.acquire(blocking=False):
        pass
    one_of_each()
    for answer in answers:
        answer.outcome()
    counts = batcher.counts
    assert counts.received == len(answers) == 800 + 5
    assert counts.pending == 0
    assert min(counts.answered, counts.failed, counts.cancelled, counts.refused) > 0
    by_kind = [sum(isinstance(a.outcome(), kind) for a in answers) for kind in (Rows, InternalError, Cancelled)]
    assert by_kind == [counts.answered, counts.failed, counts.cancelled]
