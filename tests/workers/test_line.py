"""The way of requests between a worker and the engine, with a real registry, executor and shared memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from math import inf
from pathlib import Path

import numpy as np
import pytest

from opara_server.engine.spec import TensorSpec
from opara_server.rpc.turn import Turn
from opara_server.serving.batcher import Rows
from opara_server.serving.errors import (
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidInput,
    ModelUnavailable,
    Overloaded,
)
from opara_server.serving.models import Cancellable
from opara_server.workers.caller import Caller, RemoteQueue
from opara_server.workers.desk import Desk
from opara_server.workers.link import End, link
from opara_server.workers.mirror import Mirror, RemoteModel
from opara_server.workers.records import CANCEL, SUBMISSION, read
from opara_server.workers.region import attach
from tests.serving.fakes import PATIENCE_S, Answer, FakeCompiled, doubled, rows_of, wait_for
from tests.serving.registries import MODEL, Server, repository, serving

NAME = "double"
TOML = MODEL + "[batching]\nmax_rows = 16\nmax_queue_rows = 64\n"


class Way:
    """An engine with one model, and a worker's end of a line to it."""

    def __init__(self, folder: Path, compiled: FakeCompiled | None = None, toml: str = TOML) -> None:
        self.compiled = compiled or FakeCompiled(NAME, (1, 4))
        self._stack = ExitStack()
        self.server: Server = self._stack.enter_context(
            serving(repository(folder, **{NAME: toml}), lambda *_: self.compiled)
        )
        self.server.load()
        self.desk = Desk(self.server.registry, self.server.metrics)
        self.desk.start()
        self._stack.callback(self.desk.stop)
        self.mirror = Mirror()
        self.broken: list[tuple[End, End]] = []  # whose requests could not be taken
        self.ends = link()
        self.caller = self.connect(self.ends)

    def connect(self, ends: tuple[End, End], turn: Turn | None = None) -> Caller:
        engine, worker = ends
        self.desk.open(engine.memory, engine.submissions, engine.completions, lambda: self.broken.append(ends))
        caller = Caller(attach(worker.memory).places, worker.submissions, worker.completions, turn or Turn())
        self.update(caller)
        return caller

    def update(self, caller: Caller) -> None:
        self.mirror.update(self.desk.catalogue.describe()["models"], caller)

    @property
    def model(self) -> RemoteModel:
        return self.mirror.get(NAME)

    def ask(self, rows: Rows) -> Answer:
        answer = Answer()
        self.model.batcher.submit(rows, None, answer)
        return answer

    def hold(self) -> tuple[Answer, Cancellable]:
        """One batch stands at the gate: what comes now waits. Its request."""
        device, answer = self.compiled.device, Answer()
        device.gate.clear()
        while device.entered.acquire(blocking=False):
            pass
        ticket = self.model.batcher.submit(rows_of(1), None, answer)
        assert device.entered.acquire(timeout=PATIENCE_S)
        return answer, ticket

    def counts(self) -> tuple[int, int, int, int, int]:
        known = self.server.registry.get(NAME).batcher.counts
        return known.received, known.answered, known.failed, known.cancelled, known.refused

    def close(self) -> None:
        if isinstance(self.compiled, FakeCompiled):
            self.compiled.device.gate.set()
        self._stack.close()
        for end in self.ends:
            os.close(end.messages)
            os.close(end.memory)


@pytest.fixture
def way(tmp_path: Path) -> Iterator[Way]:
    made = Way(tmp_path)
    yield made
    made.close()


def test_many_requests_each_get_their_own_answer(way: Way) -> None:
    for _ in range(20):
        asked = [rows_of(1 + index % 6) for index in range(15)]
        answers = [way.ask(rows) for rows in asked]
        for rows, answer in zip(asked, answers, strict=True):
            assert np.array_equal(answer.array(), doubled(rows))
    wait_for(lambda: way.caller._slots.taken == 0)
    assert way.counts() == (300, 300, 0, 0, 0)


def test_what_a_serving_thread_submits_goes_together_and_its_answers_come_in_its_turn(way: Way) -> None:
    turn = Turn()
    turn.attended = True
    way.connect(others := link(), turn)
    gate = way.compiled.device.gate
    turn.acquire()
    gate.clear()  # no answer comes while it works
    asked = [rows_of(count) for count in (1, 2, 3)]
    answers = [way.ask(rows) for rows in asked]
    assert way.counts()[0] == 0
    turn.work()
    gate.set()
    wait_for(lambda: way.counts()[1] == 3)
    assert not any(answer.there for answer in answers)
    wait_for(lambda: (turn.work(), all(answer.there for answer in answers))[1])
    assert all(np.array_equal(answer.array(), doubled(rows)) for rows, answer in zip(asked, answers, strict=True))
    assert {answer.thread for answer in answers} == {threading.current_thread().name}
    gate.clear()
    asleep = way.ask(rows_of(1))
    turn.work()
    turn.release()
    gate.set()
    assert asleep.array().shape == (1, 2)
    assert asleep.thread == "opara-replies"
    for end in others:
        os.close(end.messages)
        os.close(end.memory)


def test_a_cancelled_request_leaves_the_queue_and_its_place(way: Way) -> None:
    (held, _), answer = way.hold(), Answer()
    ticket = way.model.batcher.submit(rows_of(2), None, answer)
    ticket.cancel()
    ticket.cancel()
    assert isinstance(answer.error(), Cancelled)
    wait_for(lambda: way.caller._slots.taken == 1)
    way.compiled.device.gate.set()
    held.array()
    ticket.cancel()  # too late, and about nothing
    assert way.counts() == (2, 1, 0, 1, 0)


def test_the_place_of_a_request_that_runs_is_not_used_again_before_it_has_run(way: Way) -> None:
    answer, ticket = way.hold()
    ticket.cancel()
    assert isinstance(answer.error(), Cancelled)
    assert way.caller._slots.taken == 1
    way.compiled.device.gate.set()
    wait_for(lambda: way.caller._slots.taken == 0)
    assert way.counts() == (1, 0, 0, 1, 0)


def test_refusals_arrive_as_what_they_are(way: Way) -> None:
    held, _ = way.hold()
    late, many = Answer(), Answer()
    way.model.batcher.submit(rows_of(1), 1.0, late)
    assert isinstance(late.error(), DeadlineExceeded)
    waiting = [way.ask(rows_of(16)) for _ in range(4)]
    way.model.batcher.submit(rows_of(1), None, many)
    assert isinstance(many.error(), Overloaded)
    assert "64 of 64 rows wait" in str(many.error())
    assert isinstance(way.ask(rows_of(17)).error(), InvalidInput)
    assert isinstance(way.ask(Rows((b"short",), 1)).error(), InvalidInput)
    way.compiled.device.gate.set()
    held.array()
    assert all(answer.array().shape == (16, 2) for answer in waiting)
    wait_for(lambda: way.caller._slots.taken == 0)
    assert way.counts() == (8, 5, 0, 0, 3)


def test_a_batch_that_fails_is_told_with_its_reference(way: Way) -> None:
    way.compiled.device.error = RuntimeError("no")
    error = way.ask(rows_of(1)).error()
    assert isinstance(error, InternalError)
    assert len(error.reference) == 12
    assert way.counts() == (1, 0, 1, 0, 0)


def test_more_than_may_be_in_flight_is_refused_at_once(way: Way) -> None:
    way.caller._most = 2
    held, _ = way.hold()
    waiting = way.ask(rows_of(1))
    refusal = way.ask(rows_of(1)).error()
    assert isinstance(refusal, Overloaded)
    assert str(refusal) == "too many requests are in flight: a worker may have 2"
    way.compiled.device.gate.set()
    assert held.array().shape == waiting.array().shape


def test_of_a_worker_that_dies_all_requests_are_cancelled_and_no_others(way: Way) -> None:
    other = way.connect(others := link())
    way.hold()
    mine = way.ask(rows_of(1))
    way.update(way.caller)
    way.ask(rows_of(2))
    wait_for(lambda: way.counts()[0] == 3)
    os.dup2(os.open(os.devnull, os.O_WRONLY), way.ends[1].submissions)  # as the kernel does when a process ends
    wait_for(lambda: way.counts()[3] == 1)
    way.compiled.device.gate.set()
    mine.array()
    way.update(other)
    assert np.array_equal(way.ask(rows := rows_of(3)).array(), doubled(rows))
    for end in others:
        os.close(end.messages)
        os.close(end.memory)


def test_of_a_worker_that_sends_nonsense_all_requests_are_cancelled_and_somebody_is_told(
    way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    other = way.connect(others := link())
    mine = way.ask(rows_of(3))
    mine.array()
    way.update(way.caller)
    held, _ = way.hold()
    waiting = way.ask(rows_of(1))
    wait_for(lambda: way.counts()[0] == 3)
    os.write(way.ends[1].submissions, SUBMISSION.pack(0, 12345, 1, inf, 0, 0))  # there is no such model
    wait_for(lambda: way.broken == [way.ends])
    assert isinstance(held.error(), Cancelled | ModelUnavailable)
    assert isinstance(waiting.error(), Cancelled | ModelUnavailable)
    assert "a worker's requests could not be taken" in caplog.text
    assert "IndexError" in caplog.text
    way.compiled.device.gate.set()
    way.update(other)
    assert np.array_equal(way.ask(rows := rows_of(3)).array(), doubled(rows))
    assert way.broken == [way.ends]
    for end in others:
        os.close(end.messages)
        os.close(end.memory)


@pytest.mark.parametrize("failing", ["counting", "unpinning"])
def test_a_line_that_cannot_be_closed_as_it_should_be_takes_no_other_along(
    way: Way, failing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise KeyError("an error of ours")

    other = way.connect(others := link())
    way.update(way.caller)
    way.hold()
    waiting = way.ask(rows_of(1))
    wait_for(lambda: way.counts()[0] == 2)
    where, name = (way.desk.catalogue, "rows") if failing == "counting" else (way.server.registry.pins, "release")
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fails)
        os.dup2(os.open(os.devnull, os.O_WRONLY), way.ends[1].submissions)  # as the kernel does when a process ends
        wait_for(lambda: "a worker's line could not be closed as it should be" in caplog.text)
        assert isinstance(waiting.error(), Cancelled | ModelUnavailable)
    assert "an error of ours" in caplog.text
    way.compiled.device.gate.set()
    way.update(other)
    assert np.array_equal(way.ask(rows := rows_of(3)).array(), doubled(rows))
    for end in others:
        os.close(end.messages)
        os.close(end.memory)


def test_once_the_engine_is_gone_nobody_waits_for_it(way: Way) -> None:
    held, _ = way.hold()
    way.desk.stop()
    assert isinstance(held.error(), Cancelled | ModelUnavailable)
    wait_for(lambda: not way.caller._up)
    assert isinstance(way.ask(rows_of(1)).error(), ModelUnavailable)
    way.compiled.device.gate.set()


def test_requests_for_a_model_that_was_loaded_anew_go_to_the_new_one(way: Way) -> None:
    old = way.model
    way.compiled = FakeCompiled(NAME, (1, 4))
    way.server.registry.load(NAME).result(PATIENCE_S)
    answer = Answer()
    old.batcher.submit(rows := rows_of(2), None, answer)
    assert np.array_equal(answer.array(), doubled(rows))
    assert way.compiled.device.replays[-1] == 4
    way.update(way.caller)
    assert way.model.batcher.number != old.batcher.number


def test_requests_that_do_not_fit_the_model_that_was_loaded_anew_never_reach_it(way: Way) -> None:
    """Its rows would be read from where nobody has written any."""
    old, larger = way.model, TensorSpec("x", "float32", (4,))
    way.compiled = FakeCompiled(NAME, (1, 4), inputs=(larger,), outputs=(larger,))
    way.server.registry.load(NAME).result(PATIENCE_S)
    answer = Answer()
    old.batcher.submit(rows_of(2), None, answer)
    assert isinstance(answer.error(), ModelUnavailable)
    way.update(way.caller)
    rows = Rows((np.ones((2, 4), np.float32).tobytes(),), 2)
    assert np.array_equal(way.ask(rows).array(), np.full((2, 4), 2.0))


def test_of_an_engine_that_is_gone_nobody_says_that_it_does_not_have_a_model(way: Way) -> None:
    way.mirror.lose()
    with pytest.raises(ModelUnavailable, match="restarting its engine"):
        way.mirror.get("nobody")


def test_however_often_a_request_is_cancelled_the_engine_is_told_once() -> None:
    """So much the pipe has room for."""
    engine, worker = link()
    caller = Caller(attach(worker.memory).places, worker.submissions, worker.completions, Turn())
    queue = RemoteQueue(caller, 0, 8, (8,), 8)
    answer = Answer()
    call = queue.submit(rows_of(1), None, answer)
    for _ in range(3):
        call.cancel()
    told = list(SUBMISSION.iter_unpack(read(engine.submissions, SUBMISSION) or b""))
    assert [model for _, model, *_ in told] == [0, CANCEL]
    engine.close()
    assert isinstance(answer.error(), ModelUnavailable)
    os.close(worker.messages)
    os.close(worker.memory)


def test_a_model_that_is_unloaded_is_told_of(way: Way) -> None:
    old = way.model
    way.server.registry.unload(NAME).result(PATIENCE_S)
    answer = Answer()
    old.batcher.submit(rows_of(1), None, answer)
    assert isinstance(answer.error(), ModelUnavailable)
    way.update(way.caller)
    with pytest.raises(ModelUnavailable, match="UNLOADED"):
        way.mirror.get(NAME)
