"""A thread that submits requests runs short batches itself, before it sleeps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from threading import current_thread

import numpy as np
import pytest

from opara_server.serving.batcher import Batcher, Rows
from opara_server.serving.errors import InternalError
from opara_server.serving.executor import Executor
from opara_server.serving.flights import BRIEF_S
from tests.serving.fakes import PATIENCE_S, Answer, Core, FakeCompiled, doubled, rows_of, wait_for
from tests.serving.poison import POISON, poison

EXECUTORS = "opara-executor"


@pytest.fixture
def own() -> str:
    return current_thread().name


@pytest.fixture
def helped(core: Core) -> Iterator[Core]:
    """One whose helper is the test's thread."""
    assert not core.executor.help()
    yield core
    assert core.executor.stop(PATIENCE_S)
    assert not core.executor.help()


def asleep(executor: Executor) -> bool:
    """With nothing to wake it: what comes now is left to the helper."""
    return not executor._wakes_up and not executor._awake.locked() and executor._wakes.empty()


def quick(name: str = "double", *, anywhere: bool = True) -> FakeCompiled:
    """Whose batches any thread may run."""
    compiled = FakeCompiled(name)
    for graph in compiled.graphs.values():
        graph.anywhere = anywhere
    return compiled


def submit(batcher: Batcher, count: int = 1) -> tuple[Rows, Answer]:
    rows, answer = rows_of(count), Answer()
    batcher.submit(rows, None, answer)
    return rows, answer


def help_until(executor: Executor, answer: Answer) -> None:
    def answered() -> bool:
        executor.help()
        return answer.there

    wait_for(answered)


def assert_right(rows: Rows, answer: Answer) -> None:
    np.testing.assert_array_equal(answer.array(), doubled(rows))


def test_a_short_batch_runs_on_the_thread_that_asked(helped: Core, own: str) -> None:
    batcher = helped.serve(quick())
    wait_for(lambda: asleep(helped.executor))
    rows, answer = submit(batcher, 3)
    help_until(helped.executor, answer)
    assert_right(rows, answer)
    assert answer.thread == own


def test_requests_of_others_still_wake_the_executor(helped: Core) -> None:
    batcher = helped.serve(quick())
    asked: list[tuple[Rows, Answer]] = []
    other = threading.Thread(target=lambda: asked.append(submit(batcher)))
    other.start()
    other.join()
    assert_right(*asked[0])
    assert asked[0][1].thread == EXECUTORS


@pytest.mark.parametrize("case", ["another thread's graph", "a long batch", "several lanes"])
def test_all_others_are_left_to_the_executor(case: str, helped: Core) -> None:
    compiled = quick(anywhere=case != "another thread's graph")
    batcher = helped.serve(compiled, lanes=2 if case == "several lanes" else 1)
    if case == "a long batch":
        for bucket in compiled.buckets:
            batcher.ran(bucket, 2 * BRIEF_S)
    rows, answer = submit(batcher)
    helped.executor.help()
    assert_right(rows, answer)
    assert answer.thread in {EXECUTORS, "opara-answers"}


def test_what_waits_for_company_is_answered_without_help(helped: Core) -> None:
    batcher = helped.serve(quick(), delay_s=0.01)
    rows, answer = submit(batcher)
    helped.executor.help()
    assert_right(rows, answer)


def test_nobody_helps_while_the_executor_is_at_work(helped: Core) -> None:
    compiled = quick()
    batcher = helped.serve(compiled)
    compiled.device.gate.clear()
    other = threading.Thread(target=submit, args=(batcher,))
    other.start()
    assert compiled.device.entered.acquire(timeout=PATIENCE_S)
    rows, answer = submit(batcher)
    assert not helped.executor.help()
    compiled.device.gate.set()
    assert_right(rows, answer)
    assert answer.thread == EXECUTORS
    other.join()


def test_what_comes_as_the_executor_goes_to_sleep_is_not_left_there(
    helped: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, executor = helped.serve(quick()), helped.executor
    wait_for(lambda: asleep(executor))
    looks, looked, go_on = iter((False, True)), threading.Event(), threading.Event()
    look = executor._next

    def and_pause() -> object:
        found = look()
        if current_thread().name == EXECUTORS and next(looks, False):
            looked.set()
            assert go_on.wait(PATIENCE_S)
        return found

    monkeypatch.setattr(executor, "_next", and_pause)
    executor.run(lambda: None)  # after which it looks, looks once more and sleeps
    assert looked.wait(PATIENCE_S)
    rows, answer = submit(batcher)
    assert not executor.help()
    go_on.set()
    assert_right(rows, answer)
    assert answer.thread == EXECUTORS


class Unfair:
    """A lock that whoever waits for it gets last."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self.waited_for, self.granted = threading.Event(), threading.Event()

    def acquire(self, blocking: bool = True) -> bool:
        if blocking:
            self.waited_for.set()
            assert self.granted.wait(PATIENCE_S)
        return self._lock.acquire(blocking)

    def release(self) -> None:
        self._lock.release()


def test_nobody_helps_once_the_executor_is_about_to_work(helped: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper that is always the quicker one would keep it from its jobs for good."""
    batcher, executor = helped.serve(quick()), helped.executor
    wait_for(lambda: asleep(executor))
    lock = Unfair(executor._awake)
    monkeypatch.setattr(executor, "_awake", lock)
    job = executor.run(lambda: current_thread().name)
    assert lock.waited_for.wait(PATIENCE_S)
    rows, answer = submit(batcher)
    assert not executor.help()
    lock.granted.set()
    assert job.result(PATIENCE_S) == EXECUTORS
    assert_right(rows, answer)
    assert answer.thread == EXECUTORS


def test_a_device_is_looked_at_by_the_executor() -> None:
    core, compiled = Core(), quick()
    lost: list[tuple[str, str]] = []
    core.executor.on_lost(lambda name: lost.append((name, current_thread().name)))
    batcher = core.serve(compiled)
    core.executor.help()
    wait_for(lambda: asleep(core.executor))
    compiled.device.error = RuntimeError("gone")
    _, answer = submit(batcher)
    compiled.device.lost = True
    with pytest.raises(RuntimeError, match="the context is gone"):  # as the device is left
        help_until(core.executor, answer)
    assert isinstance(answer.error(), InternalError)
    wait_for(lambda: lost == [("double", EXECUTORS)])
    core.executor.stop(PATIENCE_S)


def test_an_error_in_the_queue_fails_what_it_had_on_whatever_thread(
    helped: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = helped.serve(quick())
    wait_for(lambda: asleep(helped.executor))
    poison(monkeypatch)
    failing = [submit(batcher, count)[1] for count in (2, POISON)]
    help_until(helped.executor, failing[1])
    assert all(isinstance(answer.error(), InternalError) for answer in failing)
    wait_for(lambda: asleep(helped.executor))
    rows, answer = submit(batcher, 3)
    help_until(helped.executor, answer)
    assert_right(rows, answer)


def test_jobs_are_done_however_much_there_is_to_help_with(helped: Core) -> None:
    batcher = helped.serve(quick())
    job = helped.executor.run(lambda: current_thread().name)
    asked = []
    while not job.done():
        asked.append(submit(batcher))
        helped.executor.help()
    assert job.result() == EXECUTORS
    for rows, answer in asked:
        help_until(helped.executor, answer)
        assert_right(rows, answer)


def test_every_request_is_answered_once_and_rightly(helped: Core) -> None:
    one, two = helped.serve(quick("one")), helped.serve(quick("two"))
    asked: list[tuple[Rows, Answer]] = []

    def others() -> None:
        asked.extend(submit((one, two)[i % 2], 1 + i % 9) for i in range(300))

    thread = threading.Thread(target=others)
    thread.start()
    mine = []
    for i in range(300):
        mine.append(submit((one, two)[i % 2], 1 + i % 11))
        if i % 3:
            helped.executor.help()
    thread.join()
    for rows, answer in [*asked, *mine]:
        help_until(helped.executor, answer)
        assert_right(rows, answer)
    assert one.counts.pending == two.counts.pending == 0
