"""Floors and goals, held against cells."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.cells import CellKey
from bench.goals import Goal, goals, goals_table, ratios_table
from bench.selection import REQUIRED_MODELS
from tests.bench.synthetic import cell


def found(**medians: float) -> dict[str, Goal]:
    """Of cells that are all alike."""
    cells = [cell(model, "float16", batch, **medians) for model in REQUIRED_MODELS for batch in (1, 8, 32)]
    return {goal.what: goal for goal in goals({one.key: one for one in cells})}


def test_a_floor_holds_when_all_its_cells_ran() -> None:
    every = found(sequential=420.0)  # 4.2× over the CUDA Graph, 2.0× over torch.compile
    assert every["the paper's six, ×1, over the CUDA Graph"].value == pytest.approx(4.2)
    verdicts = {what: goal.verdict for what, goal in every.items()}
    assert verdicts == {
        "GoogLeNet, ×1, over the CUDA Graph": "MISSED",
        "Inception-v3, ×1, over the CUDA Graph": "floor",
        "NASNet-A-large, ×1, over the CUDA Graph": "floor",
        "HRNet-W18-small-v2, ×1, over the CUDA Graph": "floor",
        "DeepFM, ×1, over the CUDA Graph": "floor",
        "T5-small, ×1, over the CUDA Graph": "goal",
        "BERT-base, ×1, over the CUDA Graph": "goal",
        "the paper's six, ×1, over the CUDA Graph": "goal",
        "the paper's six, ×1, over torch.compile": "goal",
        "the required seven, ×8, over torch.compile": "floor",
        "the required seven, ×32, over torch.compile": "floor",
        "the worst cell, over its best other system": "floor",
        "cells with right numbers of this engine": "floor",
    }


def test_of_torch_compile_the_best_in_one_graph_counts() -> None:
    every = found(compile_reduce_overhead=108.0, graph_combo_kernels=130.0)
    assert every["the paper's six, ×1, over torch.compile"].value == pytest.approx(1.3)
    assert every["the paper's six, ×1, over torch.compile"].verdict == "MISSED"
    assert every["the worst cell, over its best other system"].value == pytest.approx(0.9)
    assert every["the worst cell, over its best other system"].verdict == "MISSED"


def test_what_did_not_run_holds_nothing() -> None:
    one = cell("googlenet")
    wrong = replace(cell("bert_base"), systems={"ours": replace(one.systems["ours"], verified=False)})
    cells = {one.key: one, wrong.key: wrong}
    every = {goal.what: goal.verdict for goal in goals(cells)}
    assert every["the paper's six, ×1, over the CUDA Graph"] == "1 of 6 cells"
    assert every["the required seven, ×8, over torch.compile"] == "not run"
    assert every["cells with right numbers of this engine"] == "MISSED"
    assert {goal.verdict for goal in goals({})} == {"not run"}
    assert "| the paper's six, ×1, over the CUDA Graph | 3.30 | 4.10 | 4.00 | 1 of 6 cells |" in goals_table(cells)


def test_ratios_name_the_rivals() -> None:
    one = cell("deepfm", graph_combo_kernels=150.0, opara=120.0)
    assert ratios_table({one.key: one, CellKey("t5_small", "float16", 1): cell("t5_small", ours=500.0)}).splitlines()[
        2:
    ] == [
        "| DeepFM | float16 | 1 | 4.00 | 1.50 | combo kernels | 1.20 | Opara |",
        "| T5-small | float16 | 1 | 0.80 | 0.40 | default | 0.40 | one graph: default |",
    ]
