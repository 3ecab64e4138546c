"""The search in child processes: what they give back runs here, and what they cannot do is said."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opara_server.engine import build, lowerings, tuning
from opara_server.engine.compiled import MEASURING, Progress
from opara_server.engine.device_cpu import CpuDevice
from opara_server.engine.errors import LoweringError, TuningError
from opara_server.engine.export import export_all
from opara_server.engine.options import BuildOptions
from opara_server.engine.plan_store import SavedPlan
from opara_server.engine.program import Program
from opara_server.engine.spec import TensorSpec
from opara_server.engine.steps import at_once
from opara_server.engine.tensors import static_inputs
from opara_server.engine.tuning import FOLDER, Request, tune_in_children
from tests.engine.compiling import assert_right, compiled, streams_are_fast
from tests.engine.devices import ScriptedDevice
from tests.engine.models import ROW, Branches

CPU = torch.device("cpu")
OPTIONS = BuildOptions((1, 4), policy="opara", tuning_budget_s=4.0)


def tuned(module: nn.Module, options: BuildOptions = OPTIONS, progress: Progress | None = None) -> SavedPlan:
    inputs = {size: static_inputs(ROW, size, CPU, channels_last=False) for size in options.batch_sizes}
    said: list[tuple[str, float]] = []
    exports = export_all(module.eval(), inputs)
    arguments = ("small", CPU, ROW, exports, options, ["no.such.module"])
    found = tune_in_children(*arguments, progress or (lambda what, share: said.append((what, share))))
    steps = {f"{step} batch size {size}" for step in ("compiling", "measuring") for size in options.batch_sizes}
    assert {what for what, _ in said} == {"searching", *steps}
    assert [share for _, share in said] == sorted(share for _, share in said)
    return found


class OnAGpu(ScriptedDevice):
    """A CPU that is taken for a GPU."""

    kind = "cuda"


@pytest.fixture
def children_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(name: str, _device: torch.device, *more: Any) -> SavedPlan:
        return tune_in_children(name, CPU, *more)

    monkeypatch.setattr(build, "tune_in_children", elsewhere)


def test_a_request_is_read_as_it_was_written() -> None:
    spec = TensorSpec("x", "int64", (3, 4), 0, 9)
    request = Request("m", "cuda", 1, (spec,), OPTIONS, (4, 1), {1: "a", 4: "b"}, ("os",), ("tf32", "ieee"))
    assert Request.loads(request.dumps()) == request


@pytest.mark.parametrize("cores", [4, 8])
def test_children_share_the_batch_sizes(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(cores)))
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


def test_a_model_that_returns_strings_too_is_searched_for() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = Branches()

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"name": "branches", "sum": self.branches(x)}

    assert tuned(Named()).choices.keys() == {"1", "4"}


def test_a_search_that_fails_is_a_warning_and_is_tried_again_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_arguments: Any) -> SavedPlan:
        raise TuningError("out of memory")

    monkeypatch.setattr(build, "tune_in_children", failing)
    module = Branches()
    with caplog.at_level(logging.WARNING):
        model = compiled(module, device=OnAGpu(streams_are_fast), cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    assert "no search for fused operators, PyTorch's own run: out of memory" in caplog.text
    for bucket in model.plan.buckets:
        assert {c.lowering for c in bucket.candidates} == {"aten"}
        assert {c.policy for c in bucket.candidates} >= {"sequential", "opara"}
        assert bucket.speedup > 1
    assert_right(model, module)
    model.close()


def test_a_failure_of_a_child_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Request.dumps
    monkeypatch.setattr(Request, "dumps", lambda request: loads(request).replace('"device": "cpu"', '"device": "tpu"'))
    with pytest.raises(TuningError, match="unknown device 'tpu'"):
        tuned(Branches())


def test_a_child_that_dies_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(TuningError, match="exit code 1"):
        tuned(Branches())


def test_a_child_ends_with_its_parent_and_tidies_up(tmp_path: Path) -> None:
    folder = tmp_path / f"{FOLDER}x" / "0"
    folder.mkdir(parents=True)
    (folder / "request.json").write_text("{}")
    program = "import time; from opara_server.engine import tuning_child as child;"
    program += f"child.Request.loads = lambda text: time.sleep(60); child.run(child.Path({str(folder)!r}))"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(280) == 1
    assert not folder.parent.exists()
    assert tmp_path.exists()


def test_a_child_whose_parent_is_gone_says_nothing_more(tmp_path: Path) -> None:
    """What it does fails while it tidies up: its files are going."""
    folder = tmp_path / f"{FOLDER}x" / "0"
    folder.mkdir(parents=True)
    program = f"""
import shutil, threading, time
from pathlib import Path
from opara_server.engine import tuning_child as child

removing, remove = threading.Event(), shutil.rmtree

def slowly(*arguments, **options):
    removing.set()
    time.sleep(0.5)
    remove(*arguments, **options)

def read(path):
    removing.wait()
    raise FileNotFoundError(path)

shutil.rmtree = slowly
Path.read_text = read
child.run(Path({str(folder)!r}))
"""
    child = subprocess.run([sys.executable, "-c", program], input=b"", capture_output=True, timeout=280, check=False)
    assert (child.returncode, child.stdout, child.stderr) == (1, b"", b"")
    assert not folder.parent.exists()


def test_a_child_whose_folder_is_gone_says_nothing_more(tmp_path: Path) -> None:
    """Its parent has tidied up and is about to end, for which it waits."""
    program = f"""
import os
from pathlib import Path
from opara_server.engine import tuning_child as child

child._Parent.end = lambda parent: os._exit(3)
child.run(Path({str(tmp_path / "0")!r}))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b""
        assert process.wait(280) == 3


def speaking(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Children that only say something."""
    child = folder / "child"
    child.write_text(f"#!/bin/sh\n{script}\n")
    child.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(child))


def test_nobody_measures_before_it_is_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = tmp_path / "told"
    speaking(
        monkeypatch,
        tmp_path,
        f"""echo '{{"state": "compiled"}}'; read order; touch {told}; echo '{{"failed": "enough"}}'""",
    )
    now = 0.0
    monkeypatch.setattr(tuning, "time", SimpleNamespace(monotonic=lambda: now, time=time.time))
    waited = []

    def wait(what: str, _share: float) -> None:
        nonlocal now
        if what.startswith(MEASURING):
            assert not told.exists()
            waited.append(what)
            now += 1e6  # is not the search's

    with pytest.raises(TuningError, match="enough"):
        tuned(Branches(), progress=wait)
    assert waited == [f"{MEASURING} batch size 4"]
    assert told.exists()


def test_folders_that_were_left_behind_are_swept_away_once_they_are_old(tmp_path: Path) -> None:
    gone, other = subprocess.Popen(["true"]), Path("/proc/self").resolve().name
    gone.wait()
    old, young, ours, foreign = (
        tmp_path / f"{FOLDER}{name}" for name in (f"{gone.pid}-a", f"{gone.pid}-b", f"{other}-c", "mine-d")
    )
    for folder in (old, young, ours, foreign):
        folder.mkdir()
        (folder / "model.pt2").write_bytes(b"weights")
        if folder is not young:
            os.utime(folder, (1.0, 1.0))
    tuning._sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([young, ours, foreign])


def test_what_is_no_json_is_no_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    speaking(monkeypatch, tmp_path, "echo Segmentation fault; sleep 60")
    with pytest.raises(TuningError, match="Segmentation fault"):
        tuned(Branches())


def test_a_child_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    speaking(monkeypatch, tmp_path, "exec sleep 600")
    monkeypatch.setattr(tuning, "SLACK_S", -100.0)
    with pytest.raises(TuningError, match="takes too long"):
        tuned(Branches())


def test_one_that_dies_while_another_measures_is_noticed_and_none_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = f"""
        echo $$ >> {tmp_path}/pids
        echo '{{"state": "compiled"}}'
        case $3 in */0) read order; sleep 1; echo '{{"state": "measured"}}'; sleep 60;; esac
    """
    speaking(monkeypatch, tmp_path, script)
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(8)))
    with pytest.raises(TuningError, match="ended"):
        tuned(Branches())
    for process in (tmp_path / "pids").read_text().split():
        assert not Path("/proc", process).exists()


def test_warnings_of_children_are_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warning = """echo '{"warned": "no fused lowering"}'; """
    speaking(monkeypatch, tmp_path, warning * 2 + """echo '{"failed": "enough"}'""")
    with pytest.raises(TuningError, match="enough"):
        tuned(Branches())
    assert caplog.text.count("no fused lowering") == 1


def test_an_unforeseen_error_of_a_child_is_told_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_exports: Any, folder: Path) -> dict[int, str]:
        return dict.fromkeys(OPTIONS.batch_sizes, str(folder / "none.pt2"))

    monkeypatch.setattr(tuning, "_save", broken)
    with pytest.raises(TuningError, match=r"none\.pt2"):
        tuned(Branches())
    (said,) = {message for message in caplog.messages if message.startswith("the search failed")}
    assert "none.pt2" in said


def test_what_keeps_the_exports_from_the_children_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("torch.export.save", full)
    with pytest.raises(TuningError, match="OSError: No space left on device"):
        tuned(Branches())


def test_without_a_folder_for_temporary_files_there_is_no_search(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    with pytest.raises(TuningError, match="FileNotFoundError"):
        tuned(Branches())


def test_what_progress_raises_ends_the_search() -> None:
    class StoppedError(Exception):
        pass

    def stopped(_what: str, _share: float) -> None:
        raise StoppedError

    inputs = {4: static_inputs(ROW, 4, CPU, channels_last=False)}
    with pytest.raises(StoppedError):
        tune_in_children("small", CPU, ROW, export_all(Branches().eval(), inputs), OPTIONS, [], stopped)


def test_a_refused_lowering_reaches_the_parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    speaking(monkeypatch, tmp_path, """echo '{"refused": "no operators"}'""")
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
            graph = at_once(model.improve(found, bucket))
            assert model.graph(bucket) is graph
        model.behind.save(found, model.plan)
        model.settle()
    assert model.behind is None
    assert_right(model, module)
    model.close()
    again = compiled(module, device=ScriptedDevice(streams_are_fast), **options)
    assert again.behind is None
    assert again.plan.reused
    assert [b.policy for b in again.plan.buckets] == [b.policy for b in model.plan.buckets]
    again.close()


def test_a_model_whose_operators_cannot_be_had_is_not_searched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child would only find out the same, at every start."""

    def refused(*_arguments: Any) -> Program:
        raise LoweringError("an operator of an unusual kind")

    monkeypatch.setattr(lowerings, "lower", refused)
    module = Branches()
    model = compiled(module, cache_dir=tmp_path, tune_behind=True)
    assert model.plan.fallback_reason == "an operator of an unusual kind"
    assert model.behind is None
    assert_right(model, module)
    model.close()
