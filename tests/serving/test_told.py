"""What /metrics tells of a model that comes, changes and goes: what serves now, and nothing of what served before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opara_server.engine.plan import SEQUENTIAL
from opara_server.model_config import ModelConfig
from opara_server.serving.errors import ModelUnavailable
from opara_server.serving.registry import Progress
from tests.serving.fakes import PATIENCE_S, FakeCompiled, wait_for
from tests.serving.registries import MODEL, Compiler, Server, repository, serving
from tests.serving.test_improvement import Behind
from tests.serving.test_reload import Generations, ask, hold

OTHER_SIZES = MODEL.replace("[1, 4]", "[4, 16]")


def gauges(server: Server, model: str) -> set[tuple[str, str | None]]:
    """What is told of a model beside what was counted: each metric, with the batch size if it has one."""
    return {
        (sample.name, sample.labels.get("bucket"))
        for family in server.metrics.registry.collect()
        if family.type == "gauge"
        for sample in family.samples
        if sample.labels.get("model") == model
    }


def told(*sizes: int) -> set[tuple[str, str | None]]:
    of_sizes = ("plan_speedup", "graph_bytes", "stream_busy_ratio", "stream_concurrency", "streams_busy_seconds",
                "stream_sample_timestamp_seconds")  # fmt: skip
    of_models = ("model_ready", "queue_depth_rows", "schedule_fallbacks")
    return {(f"opara_{name}", str(size)) for name in of_sizes for size in sizes} | {
        (f"opara_{name}", None) for name in of_models
    }


def value(server: Server, name: str, **labels: str) -> float | None:
    return server.metrics.registry.get_sample_value(f"opara_{name}", {"model": "a", **labels})


def test_of_a_model_that_is_unloaded_only_what_was_counted_is_left(tmp_path: Path) -> None:
    with serving(repository(tmp_path, a=MODEL, b=MODEL), Generations()) as server:
        server.load()
        assert gauges(server, "a") == gauges(server, "b") == told(1, 4)
        ask(server, "a")[1].array()
        server.registry.unload("a").result(PATIENCE_S)
        assert gauges(server, "a") == set()
        assert gauges(server, "b") == told(1, 4)
        assert value(server, "rows_total") == 3
        assert server.registry.samples("a") == {}
        server.registry.load("a").result(PATIENCE_S)
        assert gauges(server, "a") == told(1, 4)
        assert value(server, "rows_total") == 3


def test_of_a_model_that_is_loaded_with_other_batch_sizes_only_these_are_told(tmp_path: Path) -> None:
    with serving(repository(tmp_path, a=MODEL), Generations()) as server:
        server.load()
        repository_of(tmp_path, OTHER_SIZES)
        server.registry.load("a").result(PATIENCE_S)
        assert gauges(server, "a") == told(4, 16)
        assert set(server.registry.samples("a")) == {4, 16}


class WarmingFails(Generations):
    """From the second on, at the smallest batch size: the largest are warm then."""

    def __call__(self, name: str, module: torch.nn.Module, config: ModelConfig, progress: Progress) -> FakeCompiled:
        made = super().__call__(name, module, config, progress)
        if len(self.all) > 1:
            made.plan = replace(made.plan, buckets=tuple(replace(b, sequential_us=90.0) for b in made.plan.buckets))
            made.graphs.pop(made.buckets[-1])
        return made


def test_one_that_cannot_be_loaded_anew_leaves_what_is_told_of_the_one_that_serves(tmp_path: Path) -> None:
    compiler = WarmingFails()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        speedup, samples = value(server, "plan_speedup", bucket="4"), server.registry.samples("a")
        repository_of(tmp_path, OTHER_SIZES)
        with pytest.raises(ModelUnavailable):
            server.registry.load("a").result(PATIENCE_S)
        assert gauges(server, "a") == told(1, 4)
        assert value(server, "plan_speedup", bucket="4") == speedup
        assert server.registry.samples("a") == samples
        held = hold(server, "a", compiler.all[0])
        waiting = ask(server, "a", rows=2)[1]
        assert value(server, "queue_depth_rows") == 2
        compiler.all[0].device.gate.set()
        assert held.array().shape[0] == 3
        assert waiting.array().shape[0] == 2


def test_nothing_is_told_of_a_plan_before_it_serves(tmp_path: Path) -> None:
    seen: dict[str, set[tuple[str, str | None]]] = {}
    with serving(repository(tmp_path, a=MODEL, b=MODEL), Compiler()) as server:
        server.load(lambda what, _share: seen.update({what: gauges(server, "a")}))
    assert seen["b: measuring"] == {("opara_model_ready", None)}  # a is warm by then
    assert seen["ready"] == told(1, 4)


def test_of_a_lost_device_models_are_told_as_not_ready_and_no_more(tmp_path: Path) -> None:
    compiler = Generations()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        device = compiler.all[0].device
        device.lost, device.error = True, RuntimeError("the context is gone")
        ask(server, "a")[1].error()
        wait_for(lambda: server.ready("a") == 0)
        assert gauges(server, "a") == {("opara_model_ready", None)}
        device.lost, device.error = False, None


class GivenUp(Behind):
    """Both batch sizes run on one stream, until the larger is improved."""

    def __call__(self, name: str, module: torch.nn.Module, config: ModelConfig, progress: Progress) -> FakeCompiled:
        made = super().__call__(name, module, config, progress)
        buckets = tuple(replace(bucket, policy=SEQUENTIAL) for bucket in made.plan.buckets)
        made.plan = replace(made.plan, buckets=buckets, fallback_reason="cannot be exported")
        made.unimprovable = 1
        return made


def test_batch_sizes_given_up_are_those_of_now(tmp_path: Path) -> None:
    compiler = GivenUp()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        assert value(server, "schedule_fallbacks") == 2
        server.registry.load("a").result(PATIENCE_S)
        assert value(server, "schedule_fallbacks") == 2
        compiler.search.go.set()
        wait_for(lambda: value(server, "schedule_fallbacks") == 1)


def repository_of(folder: Path, toml: str) -> None:
    (folder / "a" / "model.toml").write_text(toml)
