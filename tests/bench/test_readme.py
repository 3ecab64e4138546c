"""README's table is that of the committed cells."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cells import CellKey, load_cells
from bench.readme import BEGIN, END, table, updated
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


def test_only_what_is_between_the_marks_changes(tmp_path: Path) -> None:
    assert updated(f"a\n{BEGIN}\nold\n{END}\nb", {}) == f"a\n{BEGIN}\n{table({})}\n{END}\nb"
    with pytest.raises(ValueError, match="no <!-- table:begin"):
        updated("a", {})
