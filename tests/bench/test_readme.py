"""README's table and facts are those of the committed cells."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.cells import CellKey, load_cells
from bench.readme import BEGIN, END, FACTS_BEGIN, FACTS_END, facts, table, updated
from bench.report import README, RESULTS
from tests.bench.synthetic import cell


def test_the_readme_tells_what_was_measured() -> None:
    text = README.read_text()
    assert updated(text, load_cells(RESULTS / "engine")) == text


def test_a_table_of_cells() -> None:
    made = cell("googlenet", graph_default=150.0)
    rows = table({made.key: made}).splitlines()
    assert rows[2:] == ["| GoogLeNet | 1 | 960 | 400 | 150 | **100** | 4.00× | 1.50× | 1.00× |"]
    assert table({CellKey("googlenet", "float16", 8): made}).count("\n") == 1


def test_facts_of_cells() -> None:
    made, other = cell("googlenet", graph_default=150.0), cell("deepfm", batch=32)
    old = replace(other.systems["ours"], peak_bytes=2**21, held_bytes=7 * 2**20)
    other = replace(other, systems={**other.systems, "ours": old})
    memory, baselines, means, ran = facts({made.key: made, other.key: other}).split("\n\n")
    assert "less in all measured cells but DeepFM float16 ×32 (2.00); at most 1.1 times is asked." in memory
    assert "is 1.0 (GoogLeNet float16 ×1) to 2.0 times (DeepFM float16 ×32) the CUDA Graph's" in memory
    assert "moved by at most 0.4%." in baselines
    assert "is 1.50× at batch 1 (1 of 7 models), 2.00× at batch 32 (1 of 7 models). 0 of 2 cells" in means
    assert ran.startswith("2 of the 28 required cells were run")


def test_of_nothing_only_that_is_said() -> None:
    assert facts({}).startswith("0 of the 28 required cells were run")


def test_only_what_is_between_the_marks_changes() -> None:
    def text(one: str, two: str) -> str:
        return f"a\n{BEGIN}\n{one}\n{END}\nb\n{FACTS_BEGIN}\n{two}\n{FACTS_END}\nc"

    assert updated(text("old", "older"), {}) == text(table({}), facts({}))
    with pytest.raises(ValueError, match="no <!-- table:begin"):
        updated("a", {})
    with pytest.raises(ValueError, match="no <!-- facts:begin"):
        updated(f"{BEGIN}{END}", {})
