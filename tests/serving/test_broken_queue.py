"""An error of ours while a batch is put together: who had a part in it is told, and everything else goes on."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from opara_server.serving.batcher import Batcher, Rows
from opara_server.serving.errors import Cancelled, InternalError
from tests.serving.fakes import PATIENCE_S, Answer, Core, FakeCompiled, doubled, rows_of, wait_for
from tests.serving.poison import POISON, poison
from tests.serving.queues import Queue, shape


def submit(batcher: Batcher, count: int) -> Answer:
    answer = Answer()
    batcher.submit(rows_of(count), None, answer)
    return answer


def answered(batcher: Batcher) -> bool:
    rows, answer = rows_of(2), Answer()
    batcher.submit(rows, None, answer)
    return bool((answer.array() == doubled(rows)).all())


@pytest.mark.parametrize("level_rows", [(), (100, 100)])
def test_all_that_the_queue_had_is_given_up_once_and_it_begins_anew(
    level_rows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch)
    queue = Queue(delay_s=0.5, level_rows=level_rows)
    late, packed, poisoned, behind = queue.submit(1, 1010.0), *map(queue.submit, (2, POISON, 30))
    cancelled = Answer()
    ticket = queue.batcher.submit(rows_of(1), None, cancelled)
    ticket.cancel()
    queue.now += 20.0
    with pytest.raises(KeyError, match="an error of ours"):
        queue.batcher.take()
    given_up, error = queue.batcher.abandon(), InternalError()
    assert [piece.count for piece in given_up.pieces] == [1, 2, POISON, 30]
    assert (queue.batcher.waiting_rows, queue.batcher.ready(queue.now), queue.batcher.take()) == (0, None, None)
    given_up.pieces[3].ticket.cancel()  # meanwhile
    queue.batcher.fail(given_up, error)
    assert [answer.error() for answer in (late, packed, poisoned)] == [error] * 3
    assert [type(answer.error()) for answer in (behind, cancelled)] == [Cancelled] * 2
    counts = queue.batcher.counts
    assert (counts.received, counts.failed, counts.cancelled, counts.refused, counts.pending) == (5, 3, 2, 0, 0)
    after = queue.submit(3)
    assert queue.batcher.ready(queue.now) == queue.now + 0.5
    queue.now += 0.5
    batch = queue.take()
    assert shape(batch) == ([3], 4)
    queue.answer(batch)
    assert isinstance(after.outcome(), Rows)


def test_what_was_refused_already_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    late, packed = queue.submit(1, 1010.0), queue.submit(2)
    queue.now += 20.0

    def broken() -> None:
        raise OSError("nobody hears of it")

    queue.batcher.delivered = broken
    with pytest.raises(OSError, match="nobody hears"):
        queue.batcher.take()
    queue.batcher.delivered = lambda: None
    queue.batcher.fail(queue.batcher.abandon(), InternalError())
    assert late.error().status == "DEADLINE_EXCEEDED"
    assert isinstance(packed.error(), InternalError)
    assert (queue.batcher.counts.refused, queue.batcher.counts.failed, queue.batcher.counts.pending) == (1, 1, 0)


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_model_whose_queue_breaks_fails_its_requests_and_serves_on(
    lanes: int, core: Core, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = FakeCompiled()
    batcher, other = core.serve(model, lanes=lanes), core.serve(FakeCompiled("other"))
    ended: list[bool] = []
    core.executor.on_failed(lambda: ended.append(True))
    model.device.gate.clear()
    running = [submit(batcher, 1)]
    assert model.device.entered.acquire(timeout=PATIENCE_S)
    poison(monkeypatch)
    failing = [submit(batcher, count) for count in (2, POISON, 3)]
    beside = submit(other, 1)
    model.device.gate.set()
    errors = [answer.error() for answer in failing]
    assert all(isinstance(error, InternalError) for error in errors)
    assert str(errors[0]).removeprefix("internal error ") == caplog.records[0].__dict__["reference"]
    assert "an error of ours" in caplog.text
    assert isinstance(beside.outcome(), Rows)
    assert isinstance(running[0].outcome(), Rows)
    assert answered(batcher)
    assert answered(other)
    wait_for(lambda: batcher.counts.pending == 0)
    assert not ended


def test_nobody_is_lost_where_a_batch_cannot_be_counted(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = core.worker(FakeCompiled())
    core.executor.run(lambda: core.executor.attach(worker)).result(PATIENCE_S)

    def broken(_seconds: Iterable[float]) -> None:
        raise ValueError("an error of ours")

    with monkeypatch.context() as patched:
        patched.setattr(worker.metrics, "waited", broken)
        assert isinstance(submit(worker.batcher, 30).error(), InternalError)
    assert answered(worker.batcher)


def test_a_batch_that_fails_is_charged_for_no_more_than_it_took(core: Core) -> None:
    model = FakeCompiled()
    worker = core.worker(model)
    core.executor.run(lambda: core.executor.attach(worker)).result(PATIENCE_S)
    model.device.error, began = RuntimeError("always"), time.monotonic()
    assert isinstance(submit(worker.batcher, 1).error(), InternalError)
    core.executor.run(lambda: None).result(PATIENCE_S)
    assert 0.0 <= worker.share.start <= time.monotonic() - began


def test_a_queue_that_breaks_always_leaves_others_their_turns(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the device's time it has none, but of the executor's, which is theirs as well."""
    breaking, other = core.worker(FakeCompiled()), core.serve(FakeCompiled("other"))
    core.executor.run(lambda: core.executor.attach(breaking)).result(PATIENCE_S)

    def broken(_seconds: Iterable[float]) -> None:
        until = time.monotonic() + 0.001
        while time.monotonic() < until:
            pass
        raise ValueError("an error of ours")

    monkeypatch.setattr(breaking.metrics, "waited", broken)
    began = time.monotonic()
    assert isinstance(submit(breaking.batcher, 1).error(), InternalError)
    core.executor.run(lambda: None).result(PATIENCE_S)
    assert 0.001 <= breaking.share.start <= time.monotonic() - began
    assert answered(other)
