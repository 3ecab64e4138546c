"""Which cells there is time for, and who measures them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.cells import Cell, CellKey
from bench.planning import CAUTION, END_SECONDS, START_SECONDS, UNKNOWN, Cost, expected_cost, next_group, share_out
from tests.bench.synthetic import cell

WANTED = [CellKey("googlenet", "float16", batch) for batch in (1, 8, 32)]
CHEAP = replace(cell("deepfm"), seconds={"compile": 10.0, "alone": 5.0})
DEAR = replace(cell("googlenet", batch=2), seconds={"compile": 100.0, "alone": 20.0})


def test_an_unknown_cell_is_expected_to_be_dear() -> None:
    assert next_group(WANTED, [], 1, None).cells == (WANTED[0],)
    assert not next_group(WANTED, [], 1, UNKNOWN.compiling + UNKNOWN.alone).cells
    failed = Cell(WANTED[0], {}, failed="SIGSEGV")
    assert next_group(WANTED, [failed], 1, None).cost == Cost(CAUTION * UNKNOWN.compiling, CAUTION * UNKNOWN.alone)


def test_cells_cost_what_their_like_did() -> None:
    assert expected_cost(WANTED[0], [CHEAP, DEAR]) == Cost(100 + START_SECONDS, 20 + END_SECONDS)
    assert expected_cost(CellKey("t5_small", "float16", 1), [CHEAP]).alone == 5 + END_SECONDS


@pytest.mark.parametrize(
    ("seconds", "count"),
    # side by side they compile in 120 s, one after the other they take 23 s each
    [(190, 3), (188, 2), (142, 0)],
)
def test_what_would_not_be_done_in_time_is_not_begun(seconds: float, count: int) -> None:
    group = next_group(WANTED, [CHEAP, DEAR], 3, CAUTION * seconds)
    assert group.cells == tuple(WANTED[:count])
    assert group.cost.compiling + group.cost.alone <= CAUTION * seconds


def test_no_more_compile_than_there_is_room_for() -> None:
    assert next_group(WANTED, [CHEAP, DEAR], 2, None).cells == tuple(WANTED[:2])


def test_gpus_are_done_at_about_the_same_time() -> None:
    small = [CellKey("deepfm", "float16", batch) for batch in (1, 2, 4, 8)]
    assert share_out([WANTED[0], *small], [CHEAP, DEAR], 2) == [[WANTED[0]], small]  # 143 s and 62 s


def test_what_compiles_for_long_comes_together_in_the_order_given() -> None:
    small = [CellKey("deepfm", "float16", batch) for batch in range(1, 21)]
    first, second = share_out([*small, *WANTED[:2]], [CHEAP, DEAR], 2)
    assert first == [*small[:2], *WANTED[:2]]  # 120 s + 62 s
    assert second == small[2:]  # 30 s + 144 s
    assert share_out(WANTED[:1], [], 3) == [WANTED[:1], [], []]
    assert share_out([], [], 2) == [[], []]
