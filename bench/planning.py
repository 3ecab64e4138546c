"""Which cells are measured where and when, and whether there is time for them. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.cells import Cell, CellKey

CAUTION = 1.15  # by how much a cell may take longer than one like it before
START_SECONDS = 20.0  # of a process, before its own clock starts
END_SECONDS = 3.0  # of a process, after its own clock has stopped


@dataclass(frozen=True)
class Cost:
    """Wall seconds of cell groups: until they have compiled, and alone on their GPU."""

    compiling: float
    alone: float

    def with_cell(self, other: Cost) -> Cost:
        """Both, compiled side by side and measured one after the other."""
        return Cost(max(self.compiling, other.compiling), self.alone + other.alone)


UNKNOWN = Cost(150.0, 25.0)  # a cell like none before, among many that compile side by side


@dataclass(frozen=True)
class Group:
    """Cells that compile side by side and are then measured one after the other. ``cost``: with caution."""

    cells: tuple[CellKey, ...]
    cost: Cost


def share_out(cells: Sequence[CellKey], known: Iterable[Cell], lanes: int) -> list[list[CellKey]]:
    """For each lane its cells, in the order given, so that the last lane is done as early as can be. Cells that compile
    for long come together, and keep no others waiting."""
    measured = [cell for cell in known if cell.seconds]
    costs = {cell: expected_cost(cell, measured) for cell in cells}
    ordered = sorted(cells, key=lambda cell: costs[cell].compiling, reverse=True)
    ends = {  # of a lane that has ordered[first : last + 1]
        costs[ordered[first]].compiling + sum(costs[cell].alone for cell in ordered[first : last + 1])
        for first in range(len(ordered))
        for last in range(first, len(ordered))
    }
    tried = (_filled(ordered, costs, end) for end in sorted(ends))
    shares = next((found for found in tried if len(found) <= lanes), [])
    return [[cell for cell in cells if cell in share] for share in (*shares, *[()] * (lanes - len(shares)))]


def _filled(ordered: Sequence[CellKey], costs: Mapping[CellKey, Cost], end: float) -> list[list[CellKey]]:
    """Each lane with as many of the next cells as are done by ``end``, one at least."""
    shares: list[list[CellKey]] = []
    total = Cost(0.0, 0.0)
    for cell in ordered:
        total = total.with_cell(costs[cell])
        if not shares or total.compiling + total.alone > end:
            shares.append([])
            total = costs[cell]
        shares[-1].append(cell)
    return shares


def next_group(todo: Sequence[CellKey], known: Iterable[Cell], jobs: int, seconds_left: float | None) -> Group:
    """The first cells of ``todo``, ``jobs`` at most, that will be done in time by what cells have cost before."""
    measured = [cell for cell in known if cell.seconds]
    group = Group((), Cost(0.0, 0.0))
    for cell in todo[:jobs]:
        expected = expected_cost(cell, measured)
        cost = group.cost.with_cell(Cost(CAUTION * expected.compiling, CAUTION * expected.alone))
        if seconds_left is not None and cost.compiling + cost.alone > seconds_left:
            break
        group = Group((*group.cells, cell), cost)
    return group


def expected_cost(cell: CellKey, measured: Iterable[Cell]) -> Cost:
    """That of the model's dearest cell, else of the dearest of all."""
    costs = [
        (other.key.model == cell.model, START_SECONDS + other.seconds["compile"], other.seconds["alone"] + END_SECONDS)
        for other in measured
    ]
    alike = [cost for cost in costs if cost[0]] or costs
    return Cost(max(c[1] for c in alike), max(c[2] for c in alike)) if alike else UNKNOWN
