"""Groups of cells: all compile before any is measured, and what goes wrong is told."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cells import Cell, CellKey, SystemResult, load_cell, save_cell
from bench.child import LATE, READY
from bench.running import GRACE_SECONDS, Crew, run_group, summary
from tests.bench.scripts import SCRIPTED, Script, script
from tests.bench.synthetic import cell
from tests.bench.timers import Limits

SORTED = ("compiling", "sleeping")
READ = f"print({READY!r}, flush=True); input()"


def named(job: Script, name: str) -> Script:
    return replace(job, cell=CellKey(name, "float32", 1), cache=job.cache / name)


def test_all_compile_before_any_measures(tmp_path: Path) -> None:
    """Whoever measures looks for all others' compiled work, and for who has measured before it."""
    code = f"""
import pathlib
own, before = (pathlib.Path({str(tmp_path)!r}, name) for name in {{names}})
pathlib.Path(own.with_suffix(".compiled")).touch()
{READ}
assert len(list(own.parent.glob("*.compiled"))) == 2
own.touch()
assert before.exists()
"""
    made = [
        named(script(tmp_path, code.replace("{names}", str(names))), names[0]) for names in (("a", "a"), ("b", "a"))
    ]
    told: list[str] = []
    with Crew() as crew:
        run_group(crew, made, time.time() + 120, {}, told.append)
    assert told == [f"{name} float32 ×1: failed, left no result" for name in "ab"]  # no error of theirs


def test_an_interruption_ends_what_every_lane_has_started(tmp_path: Path) -> None:
    """And leaves no trace of it."""
    told: list[str] = []
    begin = f"import tempfile, time; tempfile.mkstemp('.begun', dir={str(tmp_path)!r})"
    sleeping = named(script(tmp_path, f"{begin}; {READ}; time.sleep(60)"), "sleeping")
    compiling = named(script(tmp_path, f"{begin}; time.sleep(60)"), "compiling")
    with ThreadPoolExecutor(2) as pool, suppress(KeyboardInterrupt), Crew() as crew:
        for job in (sleeping, compiling):
            pool.submit(run_group, crew, [job], None, {}, told.append)
        while len(list(tmp_path.glob("*.begun"))) < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert sorted(told) == [f"{name} float32 ×1: not run, cut off by the time limit" for name in SORTED]
    assert list(tmp_path.glob("*.json")) == []
    with pytest.raises(InterruptedError):
        crew.start(sleeping)


@pytest.mark.parametrize("code", ["import time; time.sleep(60)", f"raise SystemExit({LATE})"])
def test_what_has_not_compiled_in_time_keeps_nobody_waiting(code: str, tmp_path: Path) -> None:
    told: list[str] = []
    late = replace(named(script(tmp_path, code), "late"), compile_until=time.time() - 29.9)
    with Crew() as crew:
        run_group(crew, [late, script(tmp_path, READ)], None, {}, told.append)
    assert told == [
        "late float32 ×1: not run, cut off by the time limit",
        "some float32 ×1: failed, left no result",
    ]
    assert load_cell(tmp_path, late.cell) is None


def test_whoever_is_ready_waits_for_the_late_beyond_its_own_time_to_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.child.Timer", limits := Limits())
    told: list[str] = []
    codes = {"ready": READ, "late": "import time; time.sleep(600)"}
    made = [replace(named(script(tmp_path, code), name), compile_until=time.time()) for name, code in codes.items()]
    with ThreadPoolExecutor(1) as pool, Crew() as crew:
        running = pool.submit(run_group, crew, made, None, {}, told.append)
        while len(limits.made) < 2 or not limits.lifted:
            time.sleep(0.01)
        limits.end()
        running.result()
    assert [0 < limit.seconds <= GRACE_SECONDS for limit in limits.made] == [True, True]
    assert told == [
        "ready float32 ×1: failed, left no result",
        "late float32 ×1: not run, cut off by the time limit",
    ]


def test_what_is_missing_is_told() -> None:
    wrong = replace(cell("deepfm"), systems={"ours": SystemResult(median_us=3.0, verified=False)})
    line = summary(wrong, ["ours", "nimble"])
    assert line == "deepfm float16 ×1 (40 + 10 s): ours 3.0; WRONG: ours; not run: nimble"


def test_a_cell_that_is_cut_off_was_not_run(tmp_path: Path) -> None:
    told: list[str] = []
    with Crew() as crew:
        run_group(crew, [script(tmp_path, "import time; time.sleep(60)")], time.time() + 0.05, {}, told.append)
    assert told == ["some float32 ×1: not run, cut off by the time limit"]
    assert list(tmp_path.glob("*.json")) == []


def test_what_was_saved_before_a_crash_counts(tmp_path: Path) -> None:
    done = replace(cell("googlenet"), key=SCRIPTED)
    save_cell(tmp_path / "made", done)
    (made,) = (tmp_path / "made").iterdir()
    told: list[str] = []
    code = f"import shutil; shutil.copy({str(made)!r}, {str(tmp_path)!r}); 1 / 0"
    with Crew() as crew:
        run_group(crew, [script(tmp_path, code)], None, {}, told.append)
    assert load_cell(tmp_path, SCRIPTED) == done
    assert told == [
        "some float32 ×1 (40 + 10 s): eager 960.0, sequential 400.0, opara 250.0, graph_default 200.0, ours 100.0"
    ]


def test_a_process_that_leaves_nothing_has_failed(tmp_path: Path) -> None:
    save_cell(tmp_path, replace(cell("googlenet"), key=SCRIPTED))  # of an earlier run
    told: list[str] = []
    with Crew() as crew:
        run_group(crew, [script(tmp_path, "pass")], None, {"gpu": "here"}, told.append)
    assert load_cell(tmp_path, SCRIPTED) == Cell(SCRIPTED, {"gpu": "here"}, failed="left no result")
