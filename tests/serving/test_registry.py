"""Models from a folder to serving, and what is known of those that did not get there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from opara_server.engine.errors import CaptureError
from opara_server.model_config import ModelConfig
from opara_server.serving.batcher import Rows
from opara_server.serving.errors import InternalError, ModelNotFound, ModelUnavailable
from opara_server.serving.registry import LoadError, ModelState, Progress
from tests.serving.fakes import PATIENCE_S, Answer, FakeCompiled, FakeDevice, X, doubled, rows_of
from tests.serving.models import Branchy, branchy
from tests.serving.registries import MODEL, Compiler, repository, serving

SOURCE = "its source or its weights cannot be used"


def test_models_load_warm_up_and_serve(tmp_path: Path) -> None:
    compiler = Compiler()
    with serving(repository(tmp_path, b=MODEL, a=MODEL), compiler) as server:
        changes: list[tuple[str, ModelState]] = []
        server.registry.on_change(lambda name, state: changes.append((name, state)))
        assert server.registry.models() == [("a", ModelState.LOADING), ("b", ModelState.LOADING)]
        assert server.ready("a") == 0
        with pytest.raises(ModelUnavailable, match="LOADING"):
            server.registry.get("a")
        server.load()
        assert changes == [("a", ModelState.READY), ("b", ModelState.READY)]
        assert server.registry.models() == changes
        assert {*compiler.made["a"].device.replays} == {1, 4}
        assert server.ready("a") == 1
        model = server.registry.get("a")
        assert (model.name, model.inputs, model.max_rows, model.plan.model) == ("a", (X,), 32, "a")
        rows, answer = rows_of(6), Answer()
        model.batcher.submit(rows, None, answer)
        np.testing.assert_array_equal(answer.array(), doubled(rows))
        shares = [share for _, share in server.progress]
        assert shares == sorted(shares)
        assert server.progress[1] == ("a: measuring", 0.25)
        assert server.progress[-1] == ("ready", 1.0)
    assert all(made.closed for made in compiler.made.values())
    assert server.registry.models() == [("a", ModelState.UNLOADED), ("b", ModelState.UNLOADED)]
    with pytest.raises(ModelUnavailable, match="UNLOADED"):
        server.registry.get("a")


def test_every_lane_is_warmed_and_of_these_a_gpu_has_three(tmp_path: Path) -> None:
    compiler = Compiler()

    def on_a_gpu(name: str, module: torch.nn.Module, config: ModelConfig, progress: Progress) -> FakeCompiled:
        made = compiler(name, module, config, progress)
        if name == "gpu":
            made.plan = replace(made.plan, device="cuda")
        return made

    with serving(repository(tmp_path, cpu=MODEL, gpu=MODEL), on_a_gpu) as server:
        server.load()
        replays = {name: len(made.device.replays) for name, made in compiler.made.items()}
    assert replays["gpu"] == 3 * replays["cpu"] > 0


def test_stream_occupancy_is_measured_while_warming(tmp_path: Path) -> None:
    with serving(repository(tmp_path, a=MODEL), Compiler()) as server:
        server.load()
        value = server.metrics.registry.get_sample_value
        assert value("opara_stream_busy_ratio", {"model": "a", "bucket": "4", "stream": "1"}) == pytest.approx(0.5)
        assert value("opara_streams_busy_seconds", {"model": "a", "bucket": "1", "busy": "2"}) == pytest.approx(50e-6)
        assert value("opara_stream_concurrency", {"model": "a", "bucket": "1"}) == pytest.approx(1.5)


def test_an_unknown_model(tmp_path: Path) -> None:
    with serving(repository(tmp_path, a=MODEL), Compiler()) as server:
        for query in (server.registry.get, server.registry.describe):
            with pytest.raises(ModelNotFound) as caught:
                query("b" * 1000)
            assert len(str(caught.value)) < 100


@pytest.mark.parametrize(
    ("text", "error", "reason", "told"),
    [
        (MODEL, CaptureError("the device said no"), "the device said no", "it cannot be compiled"),
        (MODEL, ValueError("a bug"), "ValueError: a bug", "its code fails"),
        (MODEL, SystemExit("enough"), "SystemExit: enough", "its code fails"),
        (MODEL + "oops = 1\n", None, "unknown key 'inputs.x.oops'", "its name or its model.toml cannot be used"),
        (MODEL.replace(":Scale", ":broken"), None, "OSError: no such disk", SOURCE),
        (MODEL.replace(":Scale", ":exits"), None, "SystemExit: 3", SOURCE),
        (MODEL.replace(":Scale", ":not_a_module"), None, "made an object of type int", SOURCE),
    ],
)
def test_a_model_that_fails_leaves_the_others_serving(
    tmp_path: Path, text: str, error: BaseException | None, reason: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(repository(tmp_path, bad=text, good=MODEL), Compiler(error, "bad")) as server:
        server.load()
        assert server.registry.models() == [("bad", ModelState.FAILED), ("good", ModelState.READY)]
        assert reason in server.registry.describe("bad").failure
        assert server.registry.describe("bad").told == told
        assert caplog.text.count("model failed to load: ") == 1
        assert reason in caplog.text
        assert (server.ready("bad"), server.ready("good")) == (0, 1)
        with pytest.raises(ModelUnavailable) as caught:
            server.registry.get("bad")
        assert reason not in str(caught.value)


def test_a_folder_with_a_bad_name_leaves_the_others_serving(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = repository(tmp_path, **{"a model": MODEL, "good": MODEL})
    (models / "notes").mkdir()
    caplog.set_level(logging.INFO)
    with serving(models, Compiler()) as server:
        server.load()
        assert server.registry.models() == [("a model", ModelState.FAILED), ("good", ModelState.READY)]
        assert server.ready("a model") == 0
    assert caplog.text.count("a model's name may have letters, digits and _ . - only") == 1
    (line,) = [line for line in caplog.records if line.getMessage() == "folders without a model.toml are no models"]
    assert vars(line)["folders"] == ["notes"]


def test_strict_ends_the_start_up_at_the_first_failure(tmp_path: Path) -> None:
    compiler = Compiler(CaptureError("no"), "b")
    with serving(repository(tmp_path, a=MODEL, b=MODEL, c=MODEL), compiler, strict=True) as server:
        with pytest.raises(LoadError, match="model b: no"):
            server.load()
        with pytest.raises(ModelUnavailable):
            server.registry.get("a")
        assert list(compiler.made) == ["a"]
    assert compiler.made["a"].closed


def test_a_server_without_any_model_does_not_start(tmp_path: Path) -> None:
    with (
        serving(repository(tmp_path, a=MODEL), Compiler(CaptureError("no"), "a")) as server,
        pytest.raises(LoadError, match="no model could be loaded"),
    ):
        server.load()


def test_a_failing_warm_up_frees_the_model(tmp_path: Path) -> None:
    made: list[FakeCompiled] = []

    def compile_with(name: str, module: torch.nn.Module, config: ModelConfig, progress: Progress) -> FakeCompiled:
        made.append(FakeCompiled(name, config.batch_sizes))
        made[0].device.error = CaptureError("replay failed")
        return made[0]

    with serving(repository(tmp_path, a=MODEL), compile_with) as server:
        with pytest.raises(LoadError):
            server.load()
        assert "replay failed" in server.registry.describe("a").failure
        assert made[0].closed
        assert made[0].device.bound == 0


def test_loading_stops_when_the_server_does(tmp_path: Path) -> None:
    compiler = Compiler()
    with serving(repository(tmp_path, a=MODEL, b=MODEL), compiler) as server:
        loading, proceed = threading.Event(), threading.Event()

        def progress(what: str, share: float) -> None:
            loading.set()
            assert proceed.wait(PATIENCE_S)

        with ThreadPoolExecutor(2) as pool:
            load = pool.submit(server.load, progress)
            assert loading.wait(PATIENCE_S)
            stop = pool.submit(server.executor.stop, PATIENCE_S)
            wait_until(lambda: server.executor.stopping, proceed)
            with pytest.raises(LoadError, match="stopped while loading"):
                load.result(PATIENCE_S)
            assert stop.result(PATIENCE_S)
    assert "b" not in compiler.made


def wait_until(condition: Callable[[], bool], then: threading.Event) -> None:
    while not condition():
        threading.Event().wait(0.001)
    then.set()


def test_the_servers_policy_overrides_the_models(tmp_path: Path) -> None:
    compiler = Compiler()
    with serving(repository(tmp_path, a='policy = "nimble"\n' + MODEL), compiler, policy="wavefront") as server:
        server.load()
    assert compiler.configs["a"].policy == "wavefront"


def test_a_description_before_and_after_loading(tmp_path: Path) -> None:
    with serving(repository(tmp_path, a=MODEL), Compiler()) as server:
        before = server.registry.describe("a")
        assert (before.state, before.plan, before.outputs) == (ModelState.LOADING, None, ())
        server.load()
        after = server.registry.describe("a")
        assert after.plan is not None
        assert (after.state, after.max_rows, [s.name for s in after.outputs]) == (ModelState.READY, 32, ["y"])
        assert (after.plan.device, after.plan.device_name) == ("cpu", "fake")


def test_the_real_engine_serves_a_branchy_model(tmp_path: Path) -> None:
    text = (
        MODEL.replace(":Scale", ":branchy").replace("[2]", "[4]").replace("batch_sizes", 'device = "cpu"\nbatch_sizes')
    )
    with serving(repository(tmp_path, a=text), None) as server:
        server.load()
        model = server.registry.get("a")
        x = torch.randn(11, 4)
        answer = Answer()
        model.batcher.submit(Rows((x.numpy().tobytes(),), 11), None, answer)
        eager = branchy()
        assert isinstance(eager, Branchy)
        np.testing.assert_allclose(answer.array(), eager(x).detach().numpy(), rtol=1e-5, atol=1e-6)
        assert model.plan.device == "cpu"
        assert server.metrics.registry.get_sample_value("opara_stream_concurrency", {"model": "a", "bucket": "4"})


def test_a_lost_device_takes_all_its_models_and_no_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made: dict[str, FakeCompiled] = {}
    gpu = FakeDevice()

    def compile_with(name: str, module: torch.nn.Module, config: ModelConfig, progress: Progress) -> FakeCompiled:
        kind = "cpu" if name == "c" else "cuda"
        made[name] = FakeCompiled(name, config.batch_sizes, device=FakeDevice() if name == "c" else gpu)
        made[name].plan = replace(made[name].plan, device=kind)
        return made[name]

    one_lane = MODEL + "[batching]\nlanes = 1\n"  # what waits has not been begun
    with serving(repository(tmp_path, a=one_lane, b=one_lane, c=MODEL), compile_with) as server:
        changes: list[tuple[str, ModelState]] = []
        server.load()
        server.registry.on_change(lambda name, state: changes.append((name, state)))
        batchers = {name: server.registry.get(name).batcher for name in made}
        gpu.gate.clear()
        running, waiting = Answer(), Answer()
        batchers["a"].submit(rows_of(1), None, running)
        batchers["b"].submit(rows_of(1), None, waiting)
        gpu.lost = True
        gpu.gate.set()
        assert isinstance(running.error(), InternalError)
        assert isinstance(waiting.error(), ModelUnavailable)
        rows, answer = rows_of(2), Answer()
        batchers["c"].submit(rows, None, answer)
        np.testing.assert_array_equal(answer.array(), doubled(rows))
        assert changes == [("a", ModelState.FAILED), ("b", ModelState.FAILED)]
        assert [server.ready(name) for name in made] == [0, 0, 1]
        for name in ("a", "b"):
            with pytest.raises(ModelUnavailable, match="FAILED"):
                server.registry.get(name)
            late = Answer()
            batchers[name].submit(rows_of(1), None, late)
            assert isinstance(late.error(), ModelUnavailable)
        (told,) = [record for record in caplog.records if "lost" in record.getMessage()]
        assert (told.levelname, told.__dict__["models"]) == ("ERROR", ["a", "b"])
    assert made["c"].closed
    assert dict(server.registry.models()) == {"a": ModelState.FAILED, "b": ModelState.FAILED, "c": ModelState.UNLOADED}


def test_a_device_that_answers_after_an_error_is_not_lost(tmp_path: Path) -> None:
    compiler = Compiler()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        compiler.made["a"].device.error = RuntimeError("once")
        answers = [Answer(), Answer()]
        for answer in answers:
            server.registry.get("a").batcher.submit(rows_of(1), None, answer)
            assert isinstance(answer.error(), InternalError)
        assert server.registry.models() == [("a", ModelState.READY)]
