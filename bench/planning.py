"""Which cells are measured next, on which GPU, and whether there is time for them. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.cells import Cell, CellKey

CAUTION = 1.15  # by how much a cell may take longer than one like it before
START_SECONDS = 20.0  # of a process, before its own clock starts
END_SECONDS = 3.0  # of a process, after its own clock has stopped


@dataclass(frozen=True)
class Cost:
    """Wall seconds of a cell group: until it has compiled, and alone on its GPU."""

    compiling: float
    alone: float


UNKNOWN = Cost(150.0, 25.0)  # a cell like none before, among many that compile side by side


@dataclass(frozen=True)
class Group:
    """Cells that all compile side by side; then each GPU measures its share, one after the other. ``cost``: with
    caution, the longest compilation's and the longest share's."""

    shares: tuple[tuple[CellKey, ...], ...]
    cost: Cost

    def __len__(self) -> int:
        return sum(map(len, self.shares))


def next_group(
    todo: Sequence[CellKey], known: Iterable[Cell], jobs: int, gpus: int, seconds_left: float | None
) -> Group:
    """The first cells of ``todo``, ``jobs`` at most, that will be done in time by what cells have cost before; each
    goes to the GPU that would be done first."""
    measured = [cell for cell in known if cell.seconds]
    shares: list[list[CellKey]] = [[] for _ in range(gpus)]
    alone = [0.0] * gpus
    total = Cost(0.0, 0.0)
    for cell in todo[:jobs]:
        cost = expected_cost(cell, measured)
        gpu = alone.index(min(alone))
        longer = Cost(max(total.compiling, CAUTION * cost.compiling), CAUTION * max(*alone, alone[gpu] + cost.alone))
        if seconds_left is not None and longer.compiling + longer.alone > seconds_left:
            break
        total = longer
        alone[gpu] += cost.alone
        shares[gpu].append(cell)
    return Group(tuple(map(tuple, shares)), total)


def expected_cost(cell: CellKey, measured: Iterable[Cell]) -> Cost:
    """That of the model's dearest cell, else of the dearest of all."""
    costs = [
        (other.key.model == cell.model, START_SECONDS + other.seconds["compile"], other.seconds["alone"] + END_SECONDS)
        for other in measured
    ]
    alike = [cost for cost in costs if cost[0]] or costs
    return Cost(max(c[1] for c in alike), max(c[2] for c in alike)) if alike else UNKNOWN
