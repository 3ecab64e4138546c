"""The search in child processes: what they give back runs here, and what they cannot do is said."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from opara_server.engine import build
from opara_server.engine.device_cpu import CpuDevice
from opara_server.engine.errors import LoweringError
from opara_server.engine.export import export_all
from opara_server.engine.options import BuildOptions
from opara_server.engine.plan_store import SavedPlan
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import static_inputs
from opara_server.engine.tuning import Request, TuningError, tune_in_children
from tests.engine.compiling import assert_right, compiled, streams_are_fast
from tests.engine.devices import ScriptedDevice
from tests.engine.models import ROW, Branches

CPU = torch.device("cpu")
OPTIONS = BuildOptions((1, 4), policy="opara", tuning_budget_s=4.0)


def tuned(module: nn.Module, device: str = "cpu", options: BuildOptions = OPTIONS) -> SavedPlan:
    inputs = {size: static_inputs(ROW, size, CPU, channels_last=False) for size in options.batch_sizes}
    said: list[tuple[str, float]] = []
    exports = export_all(module.eval(), inputs)
    found = tune_in_children("small", device, ROW, exports, options, ["no.such.module"], lambda *now: said.append(now))
    assert {what for what, _ in said} == {
        f"{step} batch size {b}" for step in ("compiling", "measuring") for b in (1, 4)
    }
    assert [share for _, share in said] == sorted(share for _, share in said)
    return found


class OnAGpu(ScriptedDevice):
    """A CPU that is taken for a GPU."""

    kind = "cuda"


@pytest.fixture
def children_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(name: str, _device: str, *more: Any) -> SavedPlan:
        return tune_in_children(name, "cpu", *more)

    monkeypatch.setattr(build, "tune_in_children", elsewhere)


def test_a_request_is_read_as_it_was_written() -> None:
    request = Request(
        "m",
        "cuda",
        (TensorSpec("x", "int64", (3, 4), 0, 9),),
        OPTIONS,
        (4, 1),
        {1: "a", 4: "b"},
        ("os",),
        ("tf32", "x"),
    )
    assert Request.loads(request.dumps()) == request


@pytest.mark.parametrize("cores", [4, 8])
def test_children_share_the_batch_sizes(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    found = tuned(Branches())
    assert [bucket.batch_size for bucket in found.plan.buckets] == [1, 4]
    assert found.choices.keys() == {"1", "4"}
    assert {c.policy for bucket in found.plan.buckets for c in bucket.candidates} == {"sequential", "opara"}
    assert not found.tensors  # it has no weights but the model's own, which are told by name


@pytest.mark.usefixtures("children_run_on_the_cpu")
def test_what_the_children_found_serves_and_is_saved(tmp_path: Path) -> None:
    module = Branches()
    for reused in (False, True):
        device = OnAGpu(streams_are_fast)
        model = compiled(module, cache_dir=tmp_path, device=device, policy="opara")
        assert model.plan.reused == reused
        assert len(device.graphs) <= 2 * 2  # those that may serve: the losers were another process's
        assert_right(model, module)
        model.close()


def test_a_search_that_fails_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def failing(*_arguments: Any) -> SavedPlan:
        raise TuningError("out of memory")

    monkeypatch.setattr(build, "tune_in_children", failing)
    module = Branches()
    with caplog.at_level(logging.WARNING):
        model = compiled(module, device=OnAGpu(streams_are_fast))
    assert "no search, PyTorch's own operators run in sequence: out of memory" in caplog.text
    assert {(b.lowering, b.policy, len(b.candidates)) for b in model.plan.buckets} == {("aten", "sequential", 1)}
    assert_right(model, module)
    model.close()


def test_a_child_that_is_refused_its_device_says_so() -> None:
    with pytest.raises(TuningError, match="unknown device 'tpu'"):
        tuned(Branches(), device="tpu")


def test_a_child_that_dies_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(TuningError, match="exit code 1"):
        tuned(Branches())


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text("{}")
    command = [sys.executable, "-c", "import time; from opara_server.engine import tuning_child as child;"]
    command[2] += "child.Request.loads = lambda text: time.sleep(60); child.main(child.Path('" + str(tmp_path) + "'))"
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 1


def test_a_refused_lowering_reaches_the_parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = tmp_path / "child"
    child.write_text('#!/bin/sh\necho \'{"refused": "no operators"}\'\n')
    child.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(child))
    with pytest.raises(LoweringError, match="no operators"):
        tuned(Branches())


def test_the_search_of_a_cpu_needs_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_arguments: Any) -> SavedPlan:
        raise AssertionError("a child was asked for")

    monkeypatch.setattr(build, "tune_in_children", never)
    model = compiled(Branches(), device=CpuDevice())
    assert len(model.plan.buckets) == 2
    model.close()


def test_a_model_that_runs_at_once_is_improved_later_and_saved(tmp_path: Path) -> None:
    module = Branches()
    options: dict[str, Any] = {"cache_dir": tmp_path, "policy": "opara", "tune_behind": True}
    model = compiled(module, device=ScriptedDevice(streams_are_fast), **options)
    assert {bucket.policy for bucket in model.plan.buckets} == {"sequential"}
    assert_right(model, module)
    assert not list(tmp_path.iterdir())
    assert model.behind is not None
    found = model.behind.search(lambda _what, _share: None)
    with model.device.bind():
        for bucket in (4, 1):
            graph = model.improve(found, bucket)
            assert model.graph(bucket) is graph
        model.improved()
    assert model.behind is None
    assert_right(model, module)
    model.close()
    again = compiled(module, device=ScriptedDevice(streams_are_fast), **options)
    assert again.behind is None
    assert again.plan.reused
    assert [b.policy for b in again.plan.buckets] == [b.policy for b in model.plan.buckets]
    again.close()
