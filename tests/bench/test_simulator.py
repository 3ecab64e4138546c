"""Schedules measured in processes of their own, on the CPU, and what the simulator's table makes of them."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from bench.cells import CellKey
from bench.child import READY
from bench.prediction import RANDOM, load
from bench.schedule_times import PASSES, in_passes
from bench.simulator import ScheduleJob, main, run_together
from opara_server.engine.schedule import check
from tests.bench.scripts import SCRIPTED, script
from tests.bench.slow_host import Run, SlowHost
from tests.bench.timers import Limits

BRANCHES = "tests.bench.tiny:BRANCHES"
READ = f"print({READY!r}, flush=True); input()"


def run(folder: Path, *more: str) -> Result:
    app = typer.Typer()
    app.command()(main)
    folders = ["--data", folder / "data", "--cache", folder / "cache", "--output", folder / "simulator.json"]
    quick = ["--device", "cpu", "--dtype", "float32", "--seconds", "0.01", "--schedules", "3"]
    return CliRunner().invoke(app, [*map(str, folders), *quick, "--models", BRANCHES, *more])


def test_what_is_measured_is_judged_and_not_measured_again(tmp_path: Path) -> None:
    first = run(tmp_path, "--batches", "1,2", "--lowerings", "aten,fused")
    assert first.exit_code == 0, first.output
    for batch in (1, 2):
        assert f"{BRANCHES} float32 ×{batch}: exit status 1: no fused: Inductor's kernels" in first.output
        record = load(tmp_path / "data" / f"{BRANCHES}-aten-float32-{batch}.json.gz")
        assert (record.batch, record.lowering) == (batch, "aten")
        assert record.environment["settings"]["float32"]
        drawn = [m.schedule for m in record.measured if m.schedule.policy == RANDOM]
        assert len(drawn) == 3
        assert len({m.schedule.steps for m in record.measured}) == len(record.measured) > 3
        for measured in record.measured:
            check(record.graph, measured.schedule)
            assert measured.median_us > 0
    assert len(json.loads((tmp_path / "simulator.json").read_text())["results"]) == 2
    again = run(tmp_path, "--batches", "1", "--lowerings", "aten", "--time-limit-s", "0.1")
    assert again.exit_code == 0, again.output
    assert again.output == (tmp_path / "simulator.md").read_text(), "nothing was left to do"


def test_a_lowering_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    assert run(tmp_path, "--lowerings", "aten,molten").exit_code == 2
    assert not list(tmp_path.iterdir())


def test_all_compile_before_any_measures_and_one_measures_at_a_time(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, time
folder = pathlib.Path({str(tmp_path)!r})
(folder / f"compiled {{os.getpid()}}").touch()
{READ}
assert len(list(folder.glob("compiled *"))) == 2
os.mkdir(folder / "alone")
time.sleep(0.05)
os.rmdir(folder / "alone")
"""
    made = [replace(script(tmp_path, code), cache=tmp_path / name) for name in "ab"]
    told: list[str] = []
    run_together(made, time.time() + 120, told.append)
    assert told == [f"{SCRIPTED}: measured"] * 2


def test_what_fails_or_is_late_is_told_and_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = ["import time; time.sleep(600)", "raise SystemExit(3)", READ]
    made = [replace(script(tmp_path, code), cache=tmp_path / str(n)) for n, code in enumerate(codes)]
    told: list[str] = []
    with monkeypatch.context() as patched, ThreadPoolExecutor(1) as pool:
        patched.setattr("bench.child.Timer", limits := Limits())
        running = pool.submit(run_together, made, time.time() + 1000, told.append)
        while limits.lifted < 2:  # those of the others, who have compiled or ended
            time.sleep(0.01)
        limits.made[0].end()
        running.result()
    assert told == [f"{SCRIPTED}: {what}" for what in ("cut off: out of time", "exit status 3", "measured")]
    run_together(made, time.time() + 10, told.append)
    assert told[3:] == [f"{SCRIPTED}: not run, no time left"] * 3


def test_a_process_is_told_what_to_measure(tmp_path: Path) -> None:
    cell = CellKey("googlenet", "float16", 8)
    job = ScheduleJob(cell, ("a", "b"), "cuda", tmp_path, tmp_path, 0.1, 0.0, 0.0, False, 2, "", None, (), 30)
    words = " ".join(job.command()[1:])
    assert words == (
        "-m bench.schedule_times googlenet float16 8 --lowering a --lowering b "
        f"--folder {tmp_path} --device cuda --schedules 30 --seconds 0.1"
    )


@dataclass
class Logged(Run):
    log: list[float] = field(default_factory=list)

    def replay(self) -> None:
        self.log.append(self.work_us)
        super().replay()


def test_every_pass_has_an_order_of_its_own_and_times_go_to_whom_they_belong() -> None:
    device, log = SlowHost(), list[float]()
    runs = [Logged(device, 100.0 * number, log=log) for number in range(1, 6)]
    medians = in_passes(runs, device, 0.0)
    assert medians == [pytest.approx([run.work_us] * PASSES) for run in runs]
    turns = len(log) // PASSES
    firsts = {tuple(dict.fromkeys(log[number * turns : (number + 1) * turns])) for number in range(PASSES)}
    assert len(firsts) == PASSES


@pytest.mark.parametrize("number", [0.0, 1.0])
def test_a_time_limit_of_nothing_is_none(number: float, tmp_path: Path) -> None:
    told: list[str] = []
    run_together([script(tmp_path, READ)], None if number == 0 else time.time() + number, told.append)
    assert told == [f"{SCRIPTED}: {'measured' if number == 0 else 'not run, no time left'}"]
