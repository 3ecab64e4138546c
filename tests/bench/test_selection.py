"""Which cells and systems a command line asks for."""

from __future__ import annotations

import pytest

from bench.cells import CellKey
from bench.end_to_end.workloads import WORKLOADS
from bench.models import MODELS
from bench.selection import ALL_MODELS, MAX_AUTOTUNE, REQUIRED_MODELS, TITLES, choose_cells, systems_for
from bench.systems import SYSTEMS
from bench.tables import COMPILED, SHORT


def test_the_required_cells_are_the_default() -> None:
    *cells, _, _, last = choose_cells()
    assert len(cells) == 28
    assert last == CellKey("inception_v3", "float16", 16)  # of the paper's Fig. 8
    assert {cell.model for cell in cells} == set(REQUIRED_MODELS)
    assert {(cell.dtype, cell.batch) for cell in cells} == {
        ("float16", 1),
        ("float16", 8),
        ("float16", 32),
        ("float32", 1),
    }
    assert [cell.batch for cell in cells[:7]] == [1] * 7


def test_a_choice_narrows_or_widens() -> None:
    assert choose_cells(models=["vit_b16"]) == [
        CellKey("vit_b16", d, b) for d, b in [("float16", 1), ("float16", 8), ("float16", 32), ("float32", 1)]
    ]
    assert len(choose_cells(models=["all"], dtypes=["float16"])) == len(ALL_MODELS) * 6
    assert choose_cells(models=["deepfm"], batches=[2], dtypes=["float32"]) == [CellKey("deepfm", "float32", 2)]
    only = choose_cells(["deepfm:float16:4", "a.b:C:float32:1"], models=["all"])
    assert only == [CellKey("deepfm", "float16", 4), CellKey("a.b:C", "float32", 1)]


@pytest.mark.parametrize("only", ["deepfm", "deepfm:float16", "deepfm:float16:x", "deepfm:int8:1", "deepfm:float16:0"])
def test_cells_that_cannot_be(only: str) -> None:
    with pytest.raises(ValueError, match="deepfm"):
        choose_cells([only])


def test_a_model_that_nobody_knows() -> None:
    said = r"^unknown model 'DeepFM': googlenet, .*, or package\.module:NAME"
    with pytest.raises(ValueError, match=said):
        choose_cells(["DeepFM:float16:1"])
    with pytest.raises(ValueError, match=said):
        choose_cells(models=["DeepFM"])


def test_max_autotune_runs_where_it_must() -> None:
    assert set(MAX_AUTOTUNE) <= set(systems_for(CellKey("bert_base", "float16", 1), (), SYSTEMS))
    elsewhere = systems_for(CellKey("bert_base", "float16", 8), (), SYSTEMS)
    assert set(SYSTEMS) - set(elsewhere) == set(MAX_AUTOTUNE)
    assert systems_for(CellKey("t5_small", "float16", 8), MAX_AUTOTUNE, SYSTEMS) == MAX_AUTOTUNE
    with pytest.raises(ValueError, match="tensorrt"):
        systems_for(CellKey("t5_small", "float16", 8), ["tensorrt"], SYSTEMS)


def test_every_name_is_known_everywhere() -> None:
    assert set(ALL_MODELS) == set(TITLES)
    assert set(MODELS) == {*ALL_MODELS, *(workload.model for workload in WORKLOADS)}
    assert set(SHORT) == set(SYSTEMS)
    assert set(COMPILED) == {name for name in SYSTEMS if name.startswith(("compile_", "graph_"))}
