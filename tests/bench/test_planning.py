"""Which cells there is time for, and who measures them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.cells import Cell, CellKey
from bench.planning import CAUTION, END_SECONDS, START_SECONDS, UNKNOWN, Cost, expected_cost, next_group
from tests.bench.synthetic import cell

WANTED = [CellKey("googlenet", "float16", batch) for batch in (1, 8, 32)]
CHEAP = replace(cell("deepfm"), seconds={"compile": 10.0, "alone": 5.0})
DEAR = replace(cell("googlenet", batch=2), seconds={"compile": 100.0, "alone": 20.0})


def test_an_unknown_cell_is_expected_to_be_dear() -> None:
    assert next_group(WANTED, [], 1, 1, None).shares == ((WANTED[0],),)
    assert len(next_group(WANTED, [], 1, 1, UNKNOWN.compiling + UNKNOWN.alone)) == 0
    failed = Cell(WANTED[0], {}, failed="SIGSEGV")
    assert next_group(WANTED, [failed], 1, 1, None).cost == Cost(CAUTION * UNKNOWN.compiling, CAUTION * UNKNOWN.alone)


def test_cells_cost_what_their_like_did() -> None:
    assert expected_cost(WANTED[0], [CHEAP, DEAR]) == Cost(100 + START_SECONDS, 20 + END_SECONDS)
    assert expected_cost(CellKey("t5_small", "float16", 1), [CHEAP]).alone == 5 + END_SECONDS


@pytest.mark.parametrize(
    ("gpus", "seconds", "count"),
    # side by side they compile in 120 s, one after the other they take 23 s each on one GPU
    [(1, 190, 3), (1, 188, 2), (1, 142, 0), (2, 190, 3), (2, 167, 3), (2, 165, 2), (3, 144, 3), (3, 142, 0)],
)
def test_what_would_not_be_done_in_time_is_not_begun(gpus: int, seconds: float, count: int) -> None:
    group = next_group(WANTED, [CHEAP, DEAR], 3, gpus, CAUTION * seconds)
    assert len(group) == count
    assert group.cost.compiling + group.cost.alone <= CAUTION * seconds
    assert [key for key in WANTED if any(key in share for share in group.shares)] == WANTED[:count]


def test_no_more_compile_than_there_is_room_for() -> None:
    assert next_group(WANTED, [CHEAP, DEAR], 2, 1, None).shares == (tuple(WANTED[:2]),)


def test_gpus_are_done_at_about_the_same_time() -> None:
    small = [CellKey("deepfm", "float16", batch) for batch in (1, 2, 4, 8)]
    group = next_group([WANTED[0], *small], [CHEAP, DEAR], 9, 2, None)
    assert group.shares == ((WANTED[0], small[3]), tuple(small[:3]))
    assert group.cost == Cost(CAUTION * 120, CAUTION * 31)
