"""Models loaded and unloaded while others serve: what waits is answered, what fails changes nothing."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from opara_server.engine.errors import CaptureError
from opara_server.model_config import ModelConfig
from opara_server.serving.errors import ModelNotFound, ModelUnavailable
from opara_server.serving.registry import ModelState, Progress
from tests.serving.fakes import PATIENCE_S, Answer, FakeCompiled, doubled, rows_of, wait_for
from tests.serving.registries import MODEL, Compiler, Server, repository, serving
from tests.serving.test_improvement import Behind


class Generations(Compiler):
    """Keeps all that it makes of each name; each later one multiplies by one more."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[FakeCompiled] = []

    def __call__(self, name: str, module: torch.nn.Module, config: ModelConfig, progress: Progress) -> FakeCompiled:
        super().__call__(name, module, config, progress)
        factor = 2 + sum(made.plan.model == name for made in self.all)
        self.all.append(FakeCompiled(name, config.batch_sizes, forward=lambda x: (x * factor,)))
        return self.all[-1]


def ask(server: Server, name: str, rows: int = 3) -> tuple[np.ndarray, Answer]:
    sent, answer = rows_of(rows), Answer()
    server.registry.get(name).batcher.submit(sent, None, answer)
    return doubled(sent), answer


def hold(server: Server, name: str, compiled: FakeCompiled) -> Answer:
    """A request that sits in a replay until the gate opens."""
    compiled.device.gate.clear()
    while compiled.device.entered.acquire(blocking=False):
        pass
    _, answer = ask(server, name)
    assert compiled.device.entered.acquire(timeout=PATIENCE_S)
    return answer


def test_unloading_answers_what_waits_and_frees_the_model(tmp_path: Path) -> None:
    compiler = Generations()
    with serving(repository(tmp_path, a=MODEL, b=MODEL), compiler) as server:
        server.load()
        a, b = compiler.all
        batcher = server.registry.get("a").batcher
        held = hold(server, "a", a)
        waiting = [ask(server, "a") for _ in range(5)]
        gone = server.registry.unload("a")
        a.device.gate.set()
        gone.result(PATIENCE_S)
        assert held.there
        for expected, answer in waiting:
            np.testing.assert_array_equal(answer.array(), expected)
        assert (a.closed, a.device.bound, b.closed) == (True, 0, False)
        assert server.registry.models() == [("a", ModelState.UNLOADED), ("b", ModelState.READY)]
        assert server.ready("a") is None  # nobody expects it to be
        with pytest.raises(ModelUnavailable, match="UNLOADED"):
            server.registry.get("a")
        late = Answer()
        batcher.submit(rows_of(1), None, late)
        assert isinstance(late.error(), ModelUnavailable)
        expected, answer = ask(server, "b")
        np.testing.assert_array_equal(answer.array(), expected)
        server.registry.unload("a").result(PATIENCE_S)  # once more


def test_a_model_comes_back(tmp_path: Path) -> None:
    compiler = Generations()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        server.registry.unload("a").result(PATIENCE_S)
        changes: list[tuple[str, ModelState]] = []
        server.registry.on_change(lambda name, state: changes.append((name, state)))
        server.registry.load("a").result(PATIENCE_S)
        assert changes == [("a", ModelState.LOADING), ("a", ModelState.READY)]
        expected, answer = ask(server, "a")
        np.testing.assert_array_equal(answer.array(), expected * 1.5)
    assert all(made.closed for made in compiler.all)


def test_a_model_that_is_new_in_the_folder(tmp_path: Path) -> None:
    with serving(repository(tmp_path, b=MODEL), Generations()) as server:
        server.load()
        with pytest.raises(ModelNotFound):
            server.registry.load("a").result(PATIENCE_S)
        repository(tmp_path, a=MODEL)
        server.registry.load("a").result(PATIENCE_S)
        assert server.registry.models() == [("a", ModelState.READY), ("b", ModelState.READY)]
        expected, answer = ask(server, "a")
        np.testing.assert_array_equal(answer.array(), expected)
        assert server.ready("a") == 1


def test_loaded_anew_the_old_one_answers_what_waits_for_it(tmp_path: Path) -> None:
    compiler = Generations()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        changes: list[tuple[str, ModelState]] = []
        server.registry.on_change(lambda name, state: changes.append((name, state)))
        held = hold(server, "a", compiler.all[0])
        waiting = [ask(server, "a") for _ in range(5)]
        again = server.registry.load("a")
        compiler.all[0].device.gate.set()
        again.result(PATIENCE_S)
        assert held.there
        for expected, answer in waiting:
            factors = {*np.unique(answer.array() / expected)}
            assert factors == {1.0}
        expected, answer = ask(server, "a")
        np.testing.assert_array_equal(answer.array(), expected * 1.5)
        assert [made.closed for made in compiler.all] == [True, False]
        assert changes == [("a", ModelState.READY)]  # it never stopped serving


def test_one_that_cannot_be_loaded_anew_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiler = Generations()
    with serving(repository(tmp_path, a=MODEL), compiler, strict=True) as server:
        server.load()
        before = server.registry.describe("a")
        (tmp_path / "a" / "model.toml").write_text(MODEL.replace("[2]", "[3]") + "oops = 1\n")
        for error in (None, CaptureError("no room"), ValueError("a bug")):
            compiler.error, compiler.failing = error, "a" if error else ""
            with pytest.raises(ModelUnavailable) as caught:
                server.registry.load("a").result(PATIENCE_S)
            assert str(caught.value) == "model 'a' could not be loaded: the server's log says why"
            (tmp_path / "a" / "model.toml").write_text(MODEL.replace("[2]", "[3]"))
        for reason in ("unknown key", "no room", "ValueError: a bug"):
            assert reason in caplog.text
        assert server.registry.describe("a") == before
        expected, answer = ask(server, "a")
        np.testing.assert_array_equal(answer.array(), expected)


def test_one_that_cannot_be_loaded_has_failed(tmp_path: Path) -> None:
    compiler = Generations()
    with serving(repository(tmp_path, a=MODEL, b=MODEL), compiler) as server:
        server.load()
        server.registry.unload("a").result(PATIENCE_S)
        compiler.error, compiler.failing = CaptureError("no room"), "a"
        with pytest.raises(ModelUnavailable):
            server.registry.load("a").result(PATIENCE_S)
        assert server.registry.models() == [("a", ModelState.FAILED), ("b", ModelState.READY)]
        assert server.registry.describe("a").failure == "no room"
        compiler.error = None
        server.registry.load("a").result(PATIENCE_S)
        assert server.registry.models()[0] == ("a", ModelState.READY)


def test_no_model_waits_for_the_search_of_one_that_is_loaded(tmp_path: Path) -> None:
    compiler = Generations()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        assert not compiler.configs["a"].tune_behind
        server.registry.load("a").result(PATIENCE_S)
        assert compiler.configs["a"].tune_behind


def test_a_folder_that_cannot_be_used_any_more(tmp_path: Path) -> None:
    with serving(repository(tmp_path, a=MODEL), Generations()) as server:
        server.load()
        shutil.rmtree(tmp_path)
        with pytest.raises(ModelUnavailable, match="the server's log says why"):
            server.registry.load("a").result(PATIENCE_S)
        expected, answer = ask(server, "a")
        np.testing.assert_array_equal(answer.array(), expected)


@pytest.mark.parametrize("when", ["searching", "switching"])
@pytest.mark.parametrize("change", ["unload", "load"])
def test_a_search_behind_ends_with_its_model(tmp_path: Path, when: str, change: str) -> None:
    compiler = Behind()
    with serving(repository(tmp_path, a=MODEL, b=MODEL), compiler) as server:
        server.load()
        first, search = compiler.made["b"], compiler.search
        if when == "switching":
            stepping = threading.Event()
            first.steps, first.on_step = 10**9, stepping.set
            search.go.set()
            assert stepping.wait(PATIENCE_S)
        getattr(server.registry, change)("b").result(PATIENCE_S)
        assert first.closed
        reports = search.reports
        wait_for(lambda: not any(t.name == "opara-search-b" and t.is_alive() for t in threads_of(first, server)))
        assert search.saved == []
        assert search.reports <= reports + 1
        if change == "load":
            expected, answer = ask(server, "b")
            np.testing.assert_array_equal(answer.array(), expected)


def threads_of(first: FakeCompiled, server: Server) -> list[threading.Thread]:
    """Those that search, but for the one of a model that was loaded anew."""
    found = [t for t in threading.enumerate() if t.name == "opara-search-b"]
    return found[:-1] if server.registry.models()[1][1] is ModelState.READY else found


def test_stopping_while_loading_anew(tmp_path: Path) -> None:
    compiler = Generations()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        held = hold(server, "a", compiler.all[0])
        again = server.registry.load("a")
        stopping = threading.Thread(target=server.executor.stop, args=(PATIENCE_S,))
        stopping.start()
        wait_for(lambda: server.executor.stopping)
        compiler.all[0].device.gate.set()
        with pytest.raises(ModelUnavailable, match="shutting down"):
            again.result(PATIENCE_S)
        stopping.join(PATIENCE_S)
        assert held.there
    assert all(made.closed for made in compiler.all)
