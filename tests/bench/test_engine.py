"""The suite from its command line, on the CPU: cells measured in processes of their own, cut off, gone on with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from bench.cells import Cell, CellKey, load_cell, load_cells, save_cell
from bench.engine import UNKNOWN, expected_cost, main, next_group, run_together
from bench.systems import SYSTEMS
from tests.bench.scripts import SCRIPTED, script
from tests.bench.synthetic import cell

SMALL = CellKey("tests.bench.tiny:CONVOLUTIONS", "float32", 2)
CRASHING = CellKey("tests.bench.tiny:CRASHING", "float32", 1)


@dataclass(frozen=True)
class Suite:
    folder: Path

    def run(self, cells: Sequence[CellKey], *more: str) -> Result:
        app = typer.Typer()
        app.command()(main)
        only = [word for key in cells for word in ("--only", f"{key.model}:{key.dtype}:{key.batch}")]
        folders = ["--output", self.folder / "cells", "--reports", self.folder, "--cache", self.folder / "cache"]
        quick = ["--device", "cpu", "--seconds", "0.02", "--studies"]
        return CliRunner().invoke(app, [*only, *map(str, folders), *quick, *more])

    def cell(self, key: CellKey) -> Cell:
        found = load_cell(self.folder / "cells", key)
        assert found
        return found


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    measured = Suite(tmp_path_factory.mktemp("suite"))
    result = measured.run([CRASHING, SMALL], "--jobs", "2")
    assert result.exit_code == 0, result.output
    return measured


def test_what_needs_no_gpu_is_measured(suite: Suite) -> None:
    one = suite.cell(SMALL)
    ran = {name for name, result in one.systems.items() if result.failed is None}
    assert ran == {"eager", "wavefront", "nimble", "opara", "ours"}
    for name in ran:
        result = one.systems[name]
        assert result.verified, name
        assert result.error is not None
        assert 0 < result.error < 1e-5
        assert result.median_us is not None
        assert result.median_us > 1
        assert (result.sm_utilisation, result.held_bytes) == (None, None)
    assert (one.systems["opara"].policy, one.systems["opara"].lowering) == ("opara", "aten")
    assert one.environment["device"] == "cpu"
    assert one.graph["width"] == 3
    assert one.seconds["alone"] >= one.seconds["measure"] > 0


def test_what_needs_a_gpu_says_so(suite: Suite) -> None:
    failed = {name: result.failed for name, result in suite.cell(SMALL).systems.items() if result.failed}
    assert failed == dict.fromkeys(
        (name for name, s in SYSTEMS.items() if s.needs_cuda and "max_autotune" not in name), "needs CUDA"
    )


def test_studies_come_along(suite: Suite) -> None:
    studies = suite.cell(SMALL).studies
    assert {order["name"] for order in studies["launch_order"]} >= {"Algorithm 2", "program", "depth first", "random 0"}
    streams = {interval[0] for interval in studies["timelines"]["opara"]["intervals"]}
    assert len(streams) == suite.cell(SMALL).systems["opara"].streams


def test_a_crash_loses_one_cell(suite: Suite) -> None:
    assert suite.cell(CRASHING).failed == "exit status 7"
    assert "failed: exit status 7" in (suite.folder / "engine_cells.md").read_text()


def test_what_is_there_is_not_measured_again(suite: Suite) -> None:
    before = (suite.folder / "cells" / f"{SMALL.stem}.json").stat().st_mtime_ns
    result = suite.run([SMALL])
    assert "1 cells, 1 of them there already" in result.output
    assert (suite.folder / "cells" / f"{SMALL.stem}.json").stat().st_mtime_ns == before


def test_no_cell_is_begun_that_would_not_be_done_in_time(suite: Suite) -> None:
    other = replace(SMALL, batch=4)
    result = suite.run([SMALL, other], "--time-limit-s", "2")
    assert f"{other}: not run, no time left" in result.output
    assert set(load_cells(suite.folder / "cells")) == {SMALL, CRASHING}
    assert "not run" in (suite.folder / "engine.md").read_text()


@pytest.mark.parametrize("more", [["--systems", "tensorrt"], ["--only", "deepfm"]])
def test_what_is_not_there_is_refused(tmp_path: Path, more: list[str]) -> None:
    result = Suite(tmp_path).run([], *more)
    assert result.exit_code == 2
    assert more[1] in result.output
    assert not (tmp_path / "cells").exists()


WANTED = [CellKey("googlenet", "float16", batch) for batch in (1, 8, 32)]


def test_an_unknown_cell_is_expected_to_be_dear() -> None:
    assert next_group(WANTED, [], 1, None) == WANTED[:1]
    assert next_group(WANTED, [], 1, UNKNOWN.compiling + UNKNOWN.alone) == []
    failed = Cell(WANTED[0], {}, failed="SIGSEGV")
    assert expected_cost(WANTED[1], [cell for cell in [failed] if cell.seconds]) == UNKNOWN


def test_cells_cost_what_their_like_did() -> None:
    cheap = replace(cell("deepfm"), seconds={"compile": 10.0, "alone": 5.0})
    dear = replace(cell("googlenet", batch=2), seconds={"compile": 100.0, "alone": 20.0})
    assert expected_cost(WANTED[0], [cheap, dear]).alone == 20
    assert expected_cost(CellKey("t5_small", "float16", 1), [cheap]).alone == 5
    # side by side they compile in 120 s, one after the other they take 20 s each
    assert next_group(WANTED, [cheap, dear], 3, 1.15 * 181) == WANTED
    assert next_group(WANTED, [cheap, dear], 3, 1.15 * 179) == WANTED[:2]
    assert next_group(WANTED, [cheap, dear], 3, 1.15 * 139) == []
    assert next_group(WANTED, [cheap, dear], 2, None) == WANTED[:2]


def test_without_a_gpu_nothing_is_begun(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = Suite(tmp_path).run([SMALL], "--device", "cuda")
    assert result.exit_code == 2
    assert "--device cpu" in result.output
    assert not (tmp_path / "cells").exists()


def test_a_cell_that_is_cut_off_was_not_run(tmp_path: Path) -> None:
    told: list[str] = []
    run_together([script(tmp_path, "import time; time.sleep(60)")], time.monotonic() + 0.05, {}, told.append)
    assert told == ["some float32 ×1: not run, cut off by the time limit"]
    assert list(tmp_path.glob("*.json")) == []


def test_what_was_saved_before_a_crash_counts(tmp_path: Path) -> None:
    done = replace(cell("googlenet"), key=SCRIPTED)
    save_cell(tmp_path / "made", done)
    (made,) = (tmp_path / "made").iterdir()
    told: list[str] = []
    run_together(
        [script(tmp_path, f"import shutil; shutil.copy({str(made)!r}, {str(tmp_path)!r}); 1 / 0")],
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
    run_together([script(tmp_path, "pass")], None, {"gpu": "here"}, told.append)
    assert load_cell(tmp_path, SCRIPTED) == Cell(SCRIPTED, {"gpu": "here"}, failed="left no result")
