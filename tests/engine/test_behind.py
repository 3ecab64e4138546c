"""A model that serves at once, and the switch to what was found meanwhile, step by step."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from opara_server.engine.compiled import CompiledModel
from opara_server.engine.plan_store import SavedPlan, read
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.steps import at_once
from tests.engine.compiling import assert_right, compiled, on_several_streams, streams_are_fast
from tests.engine.devices import ScriptedDevice
from tests.engine.models import Branches


class NeverProfiled(ScriptedDevice):
    def profile(self, program: Program) -> Profile:
        raise AssertionError(f"{len(program.graph)} operators were measured")


@pytest.fixture
def module() -> Branches:
    return Branches()


@pytest.fixture
def found(module: Branches, tmp_path: Path) -> SavedPlan:
    """What a search would have found: parallel graphs for both batch sizes."""
    folder = tmp_path / "search"
    device = ScriptedDevice(lambda streams, replay: 2 * streams_are_fast(streams, replay))
    compiled(module, cache_dir=folder, policy="opara", device=device).close()
    (path,) = folder.iterdir()
    with safe_open(path, framework="pt") as file:
        key = json.loads(file.metadata()["key"])
    saved = read(path, key)
    assert {bucket.policy for bucket in saved.plan.buckets} == {"opara"}
    return saved


def at_first(module: Branches, device: ScriptedDevice) -> CompiledModel:
    return compiled(module, device=device, policy="opara", tune_behind=True)


def test_what_serves_at_once_is_sequential_and_nothing_is_profiled_for_it(module: Branches) -> None:
    device = NeverProfiled(streams_are_fast)
    model = at_first(module, device)
    for bucket in model.plan.buckets:
        assert (bucket.policy, bucket.streams, bucket.speedup) == ("sequential", 1, 1.0)
        assert bucket.measured_us == pytest.approx(100.0)
    assert len(device.graphs) == 2
    assert_right(model, module)
    model.close()


def test_requests_between_the_steps_of_a_switch_get_right_answers(module: Branches, found: SavedPlan) -> None:
    device = NeverProfiled(streams_are_fast)
    model = at_first(module, device)
    for bucket in (4, 1):
        serving = model.graph(bucket)
        with model.device.bind():
            for _ in model.improve(found, bucket):
                assert model.graph(bucket) is serving
                assert_right(model, module)
        assert model.graph(bucket) is not serving
        assert_right(model, module)
    for plan in model.plan.buckets:
        assert plan.policy == "opara"
        assert (plan.measured_us, plan.sequential_us) == pytest.approx((50.0 + plan.streams, 100.0))
    assert len(device.graphs) == 4  # the sequential ones are compared with as they are, and stay
    assert not any(graph.closed for graph in device.graphs)
    model.close()
    assert all(graph.closed for graph in device.graphs)


def test_every_operator_runs_in_a_step_of_its_own_before_the_capture(
    module: Branches, found: SavedPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = NeverProfiled(streams_are_fast)
    model = at_first(module, device)
    ran: list[int] = []
    run = Program.run

    def watched(program: Program, operator: int, environment: Any) -> None:
        ran.append(operator)
        run(program, operator, environment)

    monkeypatch.setattr(Program, "run", watched)
    per_step = []
    with model.device.bind():
        for _ in model.improve(found, 4):
            if len(device.graphs) > 2:
                break
            per_step.append(len(ran))
            ran.clear()
    assert max(per_step) == 1
    assert sum(per_step) == model.plan.bucket(4).operators
    model.close()


def test_an_operator_that_fails_before_the_capture_costs_its_graph_alone(
    module: Branches, found: SavedPlan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = ScriptedDevice(streams_are_fast)
    model = at_first(module, device)
    run, errors = Program.run, [RuntimeError("out of memory")]

    def failing_once(program: Program, operator: int, environment: Any) -> None:
        if errors:
            raise errors.pop()
        run(program, operator, environment)

    monkeypatch.setattr(Program, "run", failing_once)
    with model.device.bind(), caplog.at_level(logging.WARNING):
        at_once(model.improve(found, 4))
    assert_right(model, module)
    assert "the next best runs instead: the model's operators fail: out of memory" in caplog.text
    model.close()


def test_what_is_slower_or_wrong_here_does_not_replace_what_serves(
    module: Branches, found: SavedPlan, caplog: pytest.LogCaptureFixture
) -> None:
    for bucket in found.plan.buckets:
        assert bucket.sequential_us == pytest.approx(200.0)
    slow = ScriptedDevice(lambda streams, _replay: 100.0 * streams)
    wrong = ScriptedDevice(streams_are_fast, spoil=on_several_streams)
    for device, reason in ((slow, "slower than sequential"), (wrong, "failed, the next best runs instead")):
        model = at_first(module, device)
        serving = model.graph(4)
        with model.device.bind(), caplog.at_level(logging.WARNING):
            assert at_once(model.improve(found, 4)) is serving
        assert reason in caplog.text
        bucket = model.plan.bucket(4)
        assert bucket.policy == "sequential"
        assert bucket.measured_us == pytest.approx(100.0)  # here, not by the search
        assert_right(model, module)
        model.close()


def test_what_came_of_the_search_is_what_the_next_start_finds(
    module: Branches, found: SavedPlan, tmp_path: Path
) -> None:
    """Whatever it is: the parallel graph of one batch size, and of the other the sequential one, since it was wrong."""
    folder = tmp_path / "cache"
    device = ScriptedDevice(streams_are_fast)
    options: dict[str, Any] = {"policy": "opara", "tune_behind": True, "cache_dir": folder}
    model = compiled(module, device=device, **options)
    assert model.behind is not None
    assert list(folder.iterdir()) == []
    with model.device.bind():
        at_once(model.improve(found, 4))
        device.spoil = on_several_streams
        at_once(model.improve(found, 1))
    model.behind.save(found, model.plan)
    model.settle()
    assert model.behind is None
    model.close()
    again = compiled(module, device=NeverProfiled(streams_are_fast), **options)
    assert again.behind is None
    assert again.plan.reused
    assert {b.batch_size: b.policy for b in again.plan.buckets} == {1: "sequential", 4: "opara"}
    assert_right(again, module)
    again.close()
