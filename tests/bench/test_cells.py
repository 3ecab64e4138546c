"""Cells as files: whole or not at all, and only good for the machine and versions they came from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cells import Cell, CellKey, SystemResult, is_current, load_cell, load_cells, save_cell
from tests.bench.synthetic import ENVIRONMENT, cell

FAILED = SystemResult(failed="needs CUDA")


def test_a_cell_survives_its_file(tmp_path: Path) -> None:
    whole = replace(cell("googlenet"), systems={**cell("googlenet").systems, "nimble": FAILED})
    save_cell(tmp_path / "new", whole)
    assert load_cell(tmp_path / "new", whole.key) == whole
    assert load_cells(tmp_path / "new") == {whole.key: whole}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["googlenet-float16-b1.json"]


def test_models_of_anybody_have_a_file_name(tmp_path: Path) -> None:
    own = cell("my.package:MODEL")
    save_cell(tmp_path, own)
    assert load_cell(tmp_path, own.key) == own


@pytest.mark.parametrize("text", ["", "{}", '{"format": 0}', '{"format": 1, "key": {}}', "[]"])
def test_a_damaged_file_is_no_cell(tmp_path: Path, text: str) -> None:
    key = CellKey("googlenet", "float16", 1)
    path = tmp_path / f"{key.stem}.json"
    path.write_text(text)
    assert load_cell(tmp_path, key) is None
    with pytest.raises(ValueError, match=path.name):
        load_cells(tmp_path)


def test_a_cell_of_another_format_is_measured_again(tmp_path: Path) -> None:
    whole = cell("googlenet")
    save_cell(tmp_path, whole)
    path = tmp_path / f"{whole.key.stem}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    assert load_cell(tmp_path, whole.key) is None


@pytest.mark.parametrize(
    ("found", "here", "systems", "current"),
    [
        (cell("bert_base"), {}, ("ours", "eager"), True),
        (cell("bert_base"), {"date": "2030-01-01", "engine": "changed"}, ("ours",), True),
        (cell("bert_base"), {"torch": "2.12"}, ("ours",), False),
        (cell("bert_base"), {"gpu": "Another GPU"}, ("ours",), False),
        (cell("bert_base"), {}, ("ours", "nimble"), False),
        (replace(cell("bert_base"), failed="SIGSEGV"), {}, (), False),
        (None, {}, (), False),
    ],
)
def test_what_need_not_be_measured_again(
    found: Cell | None, here: dict[str, str], systems: tuple[str, ...], current: bool
) -> None:
    assert is_current(found, ENVIRONMENT | here, systems) is current


def test_a_system_that_failed_was_tried() -> None:
    assert is_current(replace(cell("bert_base"), systems={"nimble": FAILED}), ENVIRONMENT, ["nimble"])


def test_wrong_numbers_are_out_of_every_comparison() -> None:
    right = cell("deepfm")
    wrong = replace(right.systems["graph_default"], median_us=1.0, verified=False)
    one = replace(right, systems={**right.systems, "graph_default": wrong, "nimble": FAILED})
    assert one.median("graph_default") is None
    assert one.best(one.systems) == "ours"
    assert one.speedup("sequential", "ours") == 4.0
    assert one.speedup("graph_default", "ours") is None
    assert one.speedup("nimble", "ours") is None
    assert one.best(["nimble", "max"]) is None
