"""Groups of cells: all compile before any measures, each GPU measures its own, and what goes wrong is told."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cells import Cell, CellKey, SystemResult, load_cell, save_cell
from bench.child import LATE, READY
from bench.running import run_group, summary
from tests.bench.scripts import SCRIPTED, Script, script
from tests.bench.synthetic import cell

READ = f"print({READY!r}, flush=True); input()"


def named(job: Script, name: str) -> Script:
    return replace(job, cell=CellKey(name, "float32", 1), cache=job.cache / name)


def test_all_compile_before_any_measures_and_gpus_measure_at_once(tmp_path: Path) -> None:
    """Whoever measures waits for the one on the other GPU, and looks for who has measured before it on its own."""
    code = f"""
import os, pathlib, sys, time
own, other, before = (pathlib.Path({str(tmp_path)!r}, name) for name in {{names}})
pathlib.Path(own.with_suffix(".compiled")).touch()
{READ}
assert len(list(own.parent.glob("*.compiled"))) == 3
own.touch()
while not other.exists():
    time.sleep(0.01)
assert before.exists()
"""
    made = {
        name: named(script(tmp_path, code.replace("{names}", str(names))), name)
        for name, names in {"a": ("a", "b", "a"), "b": ("b", "a", "b"), "c": ("c", "a", "b")}.items()
    }
    told: list[str] = []
    run_group([[made["a"]], [made["b"], made["c"]]], time.time() + 30, {}, told.append)
    assert sorted(told) == [f"{name} float32 ×1: failed, left no result" for name in "abc"]  # no error of theirs


@pytest.mark.parametrize("code", ["import time; time.sleep(60)", f"raise SystemExit({LATE})"])
def test_what_has_not_compiled_in_time_keeps_nobody_waiting(code: str, tmp_path: Path) -> None:
    told: list[str] = []
    late = replace(named(script(tmp_path, code), "late"), compile_until=time.time() - 29.9)
    run_group([[late, script(tmp_path, READ)]], None, {}, told.append)
    assert told == [
        "late float32 ×1: not run, cut off by the time limit",
        "some float32 ×1: failed, left no result",
    ]
    assert load_cell(tmp_path, late.cell) is None


def test_what_is_missing_is_told() -> None:
    wrong = replace(cell("deepfm"), systems={"ours": SystemResult(median_us=3.0, verified=False)})
    line = summary(wrong, ["ours", "nimble"])
    assert line == "deepfm float16 ×1 (40 + 10 s): ours 3.0; WRONG: ours; not run: nimble"


def test_a_cell_that_is_cut_off_was_not_run(tmp_path: Path) -> None:
    told: list[str] = []
    run_group([[script(tmp_path, "import time; time.sleep(60)")]], time.time() + 0.05, {}, told.append)
    assert told == ["some float32 ×1: not run, cut off by the time limit"]
    assert list(tmp_path.glob("*.json")) == []


def test_what_was_saved_before_a_crash_counts(tmp_path: Path) -> None:
    done = replace(cell("googlenet"), key=SCRIPTED)
    save_cell(tmp_path / "made", done)
    (made,) = (tmp_path / "made").iterdir()
    told: list[str] = []
    run_group(
        [[script(tmp_path, f"import shutil; shutil.copy({str(made)!r}, {str(tmp_path)!r}); 1 / 0")]],
        None,
        {},
        told.append,
    )
    assert load_cell(tmp_path, SCRIPTED) == done
    assert told == [
        "some float32 ×1 (40 + 10 s): eager 800.0, sequential 400.0, opara 250.0, graph_default 200.0, ours 100.0"
    ]


def test_a_process_that_leaves_nothing_has_failed(tmp_path: Path) -> None:
    save_cell(tmp_path, replace(cell("googlenet"), key=SCRIPTED))  # of an earlier run
    told: list[str] = []
    run_group([[script(tmp_path, "pass")]], None, {"gpu": "here"}, told.append)
    assert load_cell(tmp_path, SCRIPTED) == Cell(SCRIPTED, {"gpu": "here"}, failed="left no result")
