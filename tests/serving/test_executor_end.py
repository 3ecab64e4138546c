"""However the executor ends, or a model leaves it: nobody is left waiting."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from opara_server.serving.batcher import Batcher, Rows
from opara_server.serving.errors import InternalError, ModelUnavailable
from tests.serving.fakes import PATIENCE_S, Answer, Core, FakeCompiled, FakeDevice, rows_of, wait_for


def submit(batcher: Batcher, count: int = 1) -> Answer:
    answer = Answer()
    batcher.submit(rows_of(count), None, answer)
    return answer


def held(batcher: Batcher, model: FakeCompiled) -> Answer:
    """A request that sits in a replay until the gate opens."""
    model.device.gate.clear()
    answer = submit(batcher)
    assert model.device.entered.acquire(timeout=PATIENCE_S)
    return answer


def test_what_waits_for_a_model_that_is_taken_away_is_refused(core: Core) -> None:
    model = FakeCompiled()
    batcher = core.serve(model)
    running, waiting = held(batcher, model), submit(batcher)
    detached = core.executor.run(lambda: core.executor.detach("double"))
    model.device.gate.set()
    detached.result(PATIENCE_S)
    assert isinstance(running.outcome(), Rows)
    assert isinstance(waiting.error(), ModelUnavailable)
    assert isinstance(submit(batcher).error(), ModelUnavailable)


def test_a_model_that_finishes_has_no_longer_than_the_server(core: Core) -> None:
    model = FakeCompiled()
    batcher = core.serve(model)
    running, waiting = held(batcher, model), [submit(batcher, 8) for _ in range(3)]
    finished = core.executor.run(lambda: core.executor.finish("double"))
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(core.executor.stop, 0.0)
        wait_for(lambda: core.executor.stopping)
        model.device.gate.set()
        stopped.result(PATIENCE_S)
    finished.result(PATIENCE_S)
    assert isinstance(running.outcome(), Rows)
    assert all(isinstance(answer.error(), ModelUnavailable) for answer in waiting)
    assert model.device.replays == [1]


class Stuck(FakeDevice):
    """Once it is lost it cannot be left, for a reason of its own."""

    @contextmanager
    def bind(self) -> Iterator[None]:
        try:
            with super().bind():
                yield
        except RuntimeError:
            raise RuntimeError("it holds on") from None


def test_a_lost_device_that_cannot_be_left_is_told_with_the_reason_for_that(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    core, device = Core(), Stuck()
    core.executor.on_lost(core.executor.detach)
    batcher = core.serve(FakeCompiled(device=device))
    submit(batcher).array()
    device.error, device.lost = RuntimeError("a replay failed"), True
    assert isinstance(submit(batcher).error(), InternalError)
    core.executor.run(lambda: None).result(PATIENCE_S)
    (told,) = [record for record in caplog.records if record.getMessage() == "cannot leave a lost device"]
    assert told.exc_info
    assert str(told.exc_info[1]) == "it holds on"
    assert core.executor.stop(PATIENCE_S)


def test_an_error_of_its_own_ends_it_and_everybody_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core, model = Core(), FakeCompiled()
    failed: list[bool] = []
    core.executor.on_failed(lambda: failed.append(True))
    batcher = core.serve(model)
    running, waiting = held(batcher, model), submit(batcher)

    def broken() -> None:
        raise KeyError("an error of ours")

    jobs = [core.executor.run(lambda: None) for _ in range(2)]  # after the first a batch is looked for
    monkeypatch.setattr(core.executor, "_next", broken)
    model.device.gate.set()
    assert isinstance(running.outcome(), Rows)
    assert isinstance(waiting.error(), ModelUnavailable)
    assert jobs[0].result(PATIENCE_S) is None
    wait_for(jobs[1].cancelled)
    wait_for(lambda: core.executor.run(lambda: None).cancelled())
    assert failed == [True]
    assert "an error of ours" in caplog.text
    assert core.executor.stop(PATIENCE_S)
