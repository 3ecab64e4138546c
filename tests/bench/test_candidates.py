"""From what a search chose from to tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.candidates import candidate_tables, chosen, family
from bench.cells import Cell, CellKey, load_cell, save_cell
from opara_server.engine.plan import BEYOND_BUDGET, Candidate
from tests.bench.synthetic import cell


def candidate(lowering: str, policy: str, measured_us: float, rejected: str = "") -> Candidate:
    return Candidate(lowering, policy, False, 2, 1, 90.0, measured_us, 1000, rejected)


TRIED = (
    candidate("aten", "sequential", 400.0),
    candidate("fused", "sequential", 220.0),
    candidate("fused", "heft", 120.0),
    candidate("fused_rewritten", "sequential", 200.0),
    candidate("fused_rewritten", "heft:4", 130.0),
    candidate("fused_rewritten", "heft", 125.0),
    candidate("fused_rewritten", "lean(heft)", 126.0),
    candidate("fused_rewritten", "urgent(lean(heft))", 100.0),
    candidate("fused_rewritten", "search(heft:4)", 110.0),
    candidate("fused_rewritten", "ios", 0.0, BEYOND_BUDGET),
    candidate("of another engine", "heft", 150.0),
)


def searched() -> Cell:
    made = cell("googlenet")
    own = replace(made.systems["ours"], policy="urgent(lean(heft))", lowering="fused_rewritten", candidates=TRIED)
    return replace(made, systems={**made.systems, "ours": own})


def rows(table: str) -> dict[str, list[str]]:
    lines = [[part.strip() for part in line.strip("|").split(" | ")] for line in table.splitlines()]
    return {line[0]: line[1:] for line in lines}


def test_tables_of_a_search() -> None:
    made = searched()
    *_, lowerings, policies, variants = map(
        rows, candidate_tables({made.key: made, cell("deepfm").key: cell("deepfm")})
    )
    name = "GoogLeNet float16 ×1"
    assert dict(zip(lowerings["lowerings"], lowerings[name], strict=True)) == {
        **dict.fromkeys(lowerings["lowerings"], "–"),
        "aten": "400.0",
        "fused": "120.0",
        "fused_rewritten": "**100.0**",
        "of another engine": "150.0",
    }
    assert dict(zip(policies["policies"], policies[name], strict=True)) == {
        **dict.fromkeys(policies["policies"], "–"),
        "sequential": "200.0",
        "heft": "**100.0**",
        "search": "110.0",
    }
    assert list(policies) == ["policies", "---", name]
    assert variants[f"{name}: lean(heft)"] == ["fused_rewritten", "126.0", "125.0", "-0.8%", ""]
    assert variants[f"{name}: urgent(lean(heft))"] == ["fused_rewritten", "100.0", "126.0", "+26.0%", "yes"]


def test_cells_from_before_have_none() -> None:
    assert candidate_tables({cell("deepfm").key: cell("deepfm")}) == []


def test_a_cell_keeps_them(tmp_path: Path) -> None:
    save_cell(tmp_path, searched())
    loaded = load_cell(tmp_path, CellKey("googlenet", "float16", 1))
    assert loaded == searched()
    assert loaded.systems["ours"].candidates == TRIED
    assert "candidates" not in searched().to_json()["systems"]["eager"]


@pytest.mark.parametrize(
    ("policy", "name"), [("heft", "heft"), ("search(heft:2)", "search"), ("urgent(lean(packed:3))", "packed")]
)
def test_families(policy: str, name: str) -> None:
    assert family(policy) == name


def test_chosen_policies_are_counted() -> None:
    other = replace(searched(), key=CellKey("deepfm", "float16", 1))
    other = replace(other, systems={"ours": replace(other.systems["ours"], policy="packed:3")})
    third = replace(other, key=CellKey("vit_b16", "float16", 1))
    assert chosen({one.key: one for one in (searched(), other, third)}) == (
        "Policies that were chosen, in how many of 3 cells: packed 2, heft 1; of these 1 urgent, 1 lean."
    )
    assert chosen({}) == ""
