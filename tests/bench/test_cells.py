"""Cells as files: whole or not at all, and only good for the machine and versions they came from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cells import HOST_DRIVEN, Cell, CellKey, SystemResult, is_current, load_cell, load_cells, save_cell
from bench.systems import SYSTEMS
from tests.bench.synthetic import ENVIRONMENT, SETTINGS, cell, driven, result

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
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 3}))
    assert load_cell(tmp_path, whole.key) is None


@pytest.mark.parametrize(
    ("found", "here", "systems", "current"),
    [
        (cell("bert_base"), {}, ("ours", "eager"), True),
        (cell("bert_base"), {"date": "2030-01-01"}, ("ours",), True),
        (cell("bert_base"), {"engine": "changed"}, ("ours",), False),
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
    assert is_current(found, ENVIRONMENT | here, SETTINGS, systems) is current


@pytest.mark.parametrize("changed", [{"seconds": 0.1}, {"tuning_budget_s": 60.0}])
def test_what_was_set_otherwise_is_measured_again(changed: dict[str, float]) -> None:
    assert not is_current(cell("bert_base"), ENVIRONMENT, SETTINGS | changed, ["ours"], any_engine=True)


def test_what_another_engine_measured_may_stay_on_purpose() -> None:
    here = ENVIRONMENT | {"engine": "changed"}
    assert is_current(cell("bert_base"), here, SETTINGS, ["ours"], any_engine=True)
    assert not is_current(cell("bert_base"), here | {"torch": "2.12"}, SETTINGS, ["ours"], any_engine=True)


def test_a_system_that_failed_was_tried() -> None:
    assert is_current(replace(cell("bert_base"), systems={"nimble": FAILED}), ENVIRONMENT, SETTINGS, ["nimble"])


def test_wrong_numbers_are_out_of_every_comparison() -> None:
    right = cell("deepfm")
    wrong = replace(right.systems["graph_default"], median_us=1.0, verified=False)
    one = replace(right, systems={**right.systems, "graph_default": wrong, "nimble": FAILED})
    assert one.time_us("graph_default") is None
    assert one.rival(one.systems, "opara") == "ours"
    assert one.speedup("sequential", "ours") == 4.0
    assert one.speedup("graph_default", "ours") is None
    assert one.speedup("nimble", "ours") is None
    assert one.rival(["nimble", "max"], "ours") is None


def test_a_ratio_to_what_the_host_drives_is_of_host_times() -> None:
    systems = {"ours": result(100.0, host_us=120.0), "opara": result(130.0, host_us=180.0), "eager": driven(600.0)}
    one = replace(cell("deepfm"), systems=systems)
    assert one.speedup("eager", "ours") == 5.0
    assert one.speedup("ours", "eager") == 0.2
    assert one.speedup("opara", "ours") == 1.3
    assert one.time_us("eager") == 600.0
    assert one.time_us("opara") == 130.0


@pytest.mark.parametrize(("eager_us", "rival"), [(150.0, "eager"), (170.0, "opara")])
def test_the_rival_is_whom_least_is_gained_over_each_by_its_clock(eager_us: float, rival: str) -> None:
    systems = {"ours": result(100.0, host_us=120.0), "opara": result(130.0, host_us=180.0), "eager": driven(eager_us)}
    assert replace(cell("deepfm"), systems=systems).rival(["eager", "opara"], "ours") == rival


def test_device_times_of_what_the_host_drives_are_not_read(tmp_path: Path) -> None:
    whole = cell("googlenet", compile_reduce_overhead=300.0)
    save_cell(tmp_path, whole)
    path = tmp_path / f"{whole.key.stem}.json"
    older = json.loads(path.read_text()) | {"format": 1}
    for name in ("eager", "compile_reduce_overhead"):
        older["systems"][name] |= {"median_us": 7.0, "spread": 0.5}
    path.write_text(json.dumps(older))
    found = load_cell(tmp_path, whole.key)
    assert found
    assert [found.time_us(name) for name in ("eager", "compile_reduce_overhead", "ours")] == [960.0, 300.0, 100.0]
    assert found.systems["eager"].spread is None
    assert found.format == 1
    assert found.systems["ours"] == whole.systems["ours"]


def test_what_that_format_calls_host_driven_is_what_the_suite_does() -> None:
    assert {name for name, system in SYSTEMS.items() if system.host_driven} == HOST_DRIVEN
