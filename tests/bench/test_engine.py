"""The suite from its command line, on the CPU: cells measured in processes of their own, cut off, gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from bench.cells import Cell, CellKey, load_cell, load_cells, save_cell
from bench.engine import main
from bench.systems import SYSTEMS

SMALL = CellKey("tests.bench.tiny:CONVOLUTIONS", "float32", 2)
SOON = ("--time-limit-s", "2")  # over before a cell could begin
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
    assert f"| {SMALL.model} | float32 | 2 | – | – | – | " in result.output  # of ratios, only that over eager
    assert "| GoogLeNet, ×1, over the CUDA Graph | 5.00 | 6.50 | – | not run |" in result.output
    return measured


def test_what_needs_no_gpu_is_measured(suite: Suite) -> None:
    one = suite.cell(SMALL)
    ran = {name for name, result in one.systems.items() if result.failed is None}
    assert ran == {"eager", "aten", "wavefront", "nimble", "opara", "ours"}
    for name in ran:
        result = one.systems[name]
        assert result.verified, name
        assert result.error is not None
        assert 0 < result.error < 1e-5
        assert result.host_us is not None
        assert result.host_us > 1
        assert (result.median_us is None) == SYSTEMS[name].host_driven
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
    assert "1 cells, 0 of them there already" in suite.run([SMALL], "--tuning-budget-s", "1", *SOON).output
    assert (suite.folder / "cells" / f"{SMALL.stem}.json").stat().st_mtime_ns == before


def test_what_another_engine_measured_is_measured_again_unless_it_is_to_stay(suite: Suite) -> None:
    mine = suite.cell(SMALL)
    save_cell(suite.folder / "cells", replace(mine, environment={**mine.environment, "engine": "old"}))
    assert "1 cells, 0 of them there already" in suite.run([SMALL], *SOON).output
    assert "1 cells, 1 of them there already" in suite.run([SMALL], "--any-engine").output
    save_cell(suite.folder / "cells", mine)


def test_no_cell_is_begun_that_would_not_be_done_in_time(suite: Suite) -> None:
    other = replace(SMALL, batch=4)
    result = suite.run([SMALL, other], *SOON)
    assert f"{other}: not run, no time left" in result.output
    assert set(load_cells(suite.folder / "cells")) == {SMALL, CRASHING}
    assert "not run" in (suite.folder / "engine.md").read_text()


@pytest.mark.parametrize("more", [["--systems", "tensorrt"], ["--only", "deepfm"]])
def test_what_is_not_there_is_refused(tmp_path: Path, more: list[str]) -> None:
    result = Suite(tmp_path).run([], *more)
    assert result.exit_code == 2
    assert more[1] in result.output
    assert not (tmp_path / "cells").exists()


def test_without_a_gpu_nothing_is_begun(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = Suite(tmp_path).run([SMALL], "--device", "cuda")
    assert result.exit_code == 2
    assert "--device cpu" in result.output
    assert not (tmp_path / "cells").exists()
