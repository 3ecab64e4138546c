"""Models that serve at once and better later: no request is lost, and each is answered by one graph or the other."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from opara_server.engine.compiled import Progress
from opara_server.engine.device import CapturedGraph
from opara_server.engine.errors import EngineError
from opara_server.engine.plan import BucketPlan, Candidate, Plan
from opara_server.engine.plan_store import SavedPlan
from opara_server.engine.steps import Steps
from opara_server.model_config import ModelConfig
from opara_server.serving import improvement
from opara_server.serving.registry import ModelState
from tests.serving.fakes import PATIENCE_S, Answer, FakeCompiled, doubled, rows_of, wait_for
from tests.serving.registries import MODEL, Compiler, Server, repository, serving

SLOWER = Candidate("aten", "opara", False, 2, 3, 8.0, 11.0, 1024)


class Search:
    """Lasts until it is told to end; ``error`` is what it ends with."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.go = threading.Event()
        self.error: Exception | None = None
        self.reports = 0
        self.saved: list[tuple[str, Plan]] = []

    def search(self, progress: Progress) -> SavedPlan:
        while not self.go.wait(0.005):
            progress("compiling", 0.5)
            self.reports += 1
        if self.error is not None:
            raise self.error
        return SavedPlan(self.plan, {}, {})

    def finish(self, found: SavedPlan, bucket: int, serving: CapturedGraph) -> Steps[tuple[CapturedGraph, BucketPlan]]:
        raise NotImplementedError  # FakeCompiled.improve stands for it

    def save(self, _found: SavedPlan, plan: Plan) -> None:
        self.saved.append((threading.current_thread().name, plan))


class Behind(Compiler):
    def __call__(self, name: str, module: torch.nn.Module, config: ModelConfig, progress: Progress) -> FakeCompiled:
        made = super().__call__(name, module, config, progress)
        made.behind = self.search = Search(made.plan)
        return made


def ask(server: Server, rows: int) -> tuple[np.ndarray, Answer]:
    sent, answer = rows_of(rows), Answer()
    server.registry.get("a").batcher.submit(sent, None, answer)
    return doubled(sent), answer


def test_a_model_serves_at_once_and_better_later(tmp_path: Path) -> None:
    compiler = Behind()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        before, answer = ask(server, 3)
        np.testing.assert_array_equal(answer.array(), before)
        asked = []
        compiler.search.go.set()
        while server.registry.describe("a").plan == compiler.search.plan:
            asked.append(ask(server, 5))
            asked[-1][1].outcome()
        for expected, got in asked:  # one graph or the other, for each batch
            rows = got.array() / expected
            assert {*np.unique(rows)} <= {1.0, 1.5}
        after, answer = ask(server, 6)
        np.testing.assert_array_equal(answer.array(), after * 1.5)
        plan = server.registry.describe("a").plan
        assert plan is not None
        assert {bucket.policy for bucket in plan.buckets} == {"improved"}
        assert server.registry.get("a").plan == plan
        assert compiler.search.saved == [("opara-search-a", plan)]  # while the executor serves
        sample = server.metrics.registry.get_sample_value
        assert sample("opara_replays_total", {"model": "a", "bucket": "4", "policy": "improved"})


@pytest.mark.parametrize("best_already", [False, True])
def test_the_log_says_whether_anything_was_replaced(
    tmp_path: Path, best_already: bool, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = Behind()
    with caplog.at_level(logging.INFO), serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        compiler.made["a"].best_already = best_already
        compiler.search.go.set()
        wait_for(lambda: server.registry.describe("a").plan != compiler.search.plan)
        said = "search finished, nothing faster found" if best_already else "model improved"
        wait_for(lambda: said in caplog.messages)
    assert len({"search finished, nothing faster found", "model improved"}.intersection(caplog.messages)) == 1
    (record,) = [record for record in caplog.records if record.message == said]
    assert not hasattr(record, "seconds")


@pytest.mark.parametrize("best_already", [False, True])
def test_the_log_tells_of_each_batch_size_what_became_of_it_with_both_times(
    tmp_path: Path, best_already: bool, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = Behind()
    with caplog.at_level(logging.INFO), serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        made = compiler.made["a"]
        made.best_already = best_already
        slower = replace(SLOWER, again_us=12.0)
        buckets = tuple(replace(b, candidates=(SLOWER, slower)) for b in made.plan.buckets)
        made.plan = replace(made.plan, buckets=buckets)
        compiler.search.go.set()
        said = "kept as it was" if best_already else "switched"
        wait_for(lambda: caplog.messages.count(said) == 2)
    told = [vars(record) for record in caplog.records if record.message == said]
    assert [line["batch_size"] for line in told] == [4, 1]
    others = {"found": "aten opara", "found_us": 12.0} if best_already else {"sequential_us": 15.0}
    for line in told:
        assert {"model": "a", "measured_us": 9.0 if best_already else 10.0}.items() <= line.items()
        assert others.items() <= line.items()


def test_on_a_processor_it_is_told_that_requests_will_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(repository(tmp_path, a=MODEL), Behind()) as server:
        server.load()
    assert [r.levelname for r in caplog.records if "requests wait for seconds" in r.message] == ["WARNING"]


def test_an_end_that_fails_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_compiled: FakeCompiled) -> None:
        raise RuntimeError("no way to let go")

    monkeypatch.setattr(FakeCompiled, "settle", fail)
    compiler = Behind()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        compiler.search.go.set()
        wait_for(lambda: "what runs is described as it was before the search" in caplog.messages)
        after, answer = ask(server, 6)
        np.testing.assert_array_equal(answer.array(), after * 1.5)


def test_requests_are_answered_between_the_steps_of_a_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(improvement, "TURN_S", 0.0)
    compiler = Behind()
    asked: list[tuple[np.ndarray, Answer]] = []
    waited_for: list[bool] = []
    with serving(repository(tmp_path, a=MODEL), compiler) as server:

        def on_step() -> None:
            waited_for.append(all(answer.there for _, answer in asked))
            asked.append(ask(server, 2))

        server.load()
        made = compiler.made["a"]
        made.on_step = on_step
        compiler.search.go.set()
        wait_for(lambda: server.registry.describe("a").plan != compiler.search.plan)
        for expected, answer in asked:
            assert {*np.unique(answer.array() / expected)} <= {1.0, 1.5}
    assert waited_for == [True] * made.steps * len(made.buckets)


@pytest.mark.parametrize("error", [EngineError("out of memory"), RuntimeError("a bug")])
def test_a_search_that_fails_leaves_what_runs(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = Behind()
    with serving(repository(tmp_path, a=MODEL), compiler) as server, caplog.at_level(logging.WARNING):
        server.load()
        compiler.search.error = error
        compiler.search.go.set()
        wait_for(lambda: "the search failed, what runs goes on" in caplog.text)
        expected, answer = ask(server, 2)
        np.testing.assert_array_equal(answer.array(), expected)
        wait_for(lambda: compiler.made["a"].behind is None)  # it holds the exported programs


def test_a_device_that_is_lost_in_a_switch_is_told_at_once(tmp_path: Path) -> None:
    """And not by the next request, which would fail."""
    compiler = Behind()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        made = compiler.made["a"]

        def lose_it() -> None:
            made.device.lost = True
            raise RuntimeError("an illegal memory access")

        made.on_step = lose_it
        compiler.search.go.set()
        wait_for(lambda: server.registry.models() == [("a", ModelState.FAILED)])
        made.device.lost = False


def test_batch_sizes_switched_before_a_failure_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiler = Behind()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        made = compiler.made["a"]
        made.unimprovable = 1
        compiler.search.go.set()
        wait_for(lambda: server.registry.describe("a").plan != compiler.search.plan)
        assert "the search failed, what runs goes on" in caplog.text
        for rows, factor in ((1, 1.0), (4, 1.5)):
            expected, answer = ask(server, rows)
            np.testing.assert_array_equal(answer.array(), expected * factor)
        plan = server.registry.describe("a").plan
        assert plan is not None
        assert {bucket.batch_size: bucket.policy == "improved" for bucket in plan.buckets} == {1: False, 4: True}


def test_a_search_that_goes_on_and_on_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiler = Behind()
    with caplog.at_level(logging.INFO), serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        wait_for(lambda: compiler.search.reports > 5)
    assert caplog.messages.count("behind serving: compiling (50 %)") == 1


def test_a_server_that_stops_does_not_wait_for_the_search(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiler = Behind()
    with caplog.at_level(logging.INFO):
        with serving(repository(tmp_path, a=MODEL), compiler) as server:
            server.load()
        wait_for(lambda: "the search is given up" in caplog.text)
    assert compiler.made["a"].closed


def test_what_is_found_after_the_end_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiler = Behind()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        server.executor.run(server.registry.unload_all).result(PATIENCE_S)
        with caplog.at_level(logging.INFO):
            compiler.search.go.set()
            wait_for(lambda: "the search is given up" in caplog.text)
    assert compiler.made["a"].plan == compiler.search.plan
