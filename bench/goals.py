"""What the engine is to be worth on an H100 or H200, and whether it is: floors and goals, held against cells. No torch.

Speed-ups at batch 1 are over the sequential CUDA Graph of the eager module; those over torch.compile are over the
fastest that Inductor gave, with any option, captured in one sequential CUDA Graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from bench.cells import CellKey
from bench.selection import PAPER_MODELS, REQUIRED_MODELS
from bench.tables import (
    NOT_RUN,
    ONE_GRAPH,
    OURS,
    SHORT,
    Cells,
    Ratio,
    markdown,
    number,
    others,
    over_best_other,
    over_one_graph,
    over_sequential,
    title,
)

NOT_SLOWER = 0.97  # than the best other system, in any cell

SINGLE = {  # floor and goal over the sequential CUDA Graph, float16, batch 1
    "googlenet": (5.0, 6.5),
    "inception_v3": (3.4, 4.5),
    "nasnet_a_large": (4.0, 5.0),
    "hrnet_w18_small_v2": (3.5, 5.0),
    "deepfm": (4.0, 5.0),
    "t5_small": (3.1, 3.5),
    "bert_base": (1.5, 1.8),
}


@dataclass(frozen=True)
class Goal:
    """``value``: None where nothing was run; ``ran`` of ``cells`` were, and only all of them can hold the floor."""

    what: str
    floor: float
    goal: float | None
    value: float | None
    ran: int
    cells: int

    @property
    def verdict(self) -> str:
        if self.value is None:
            return NOT_RUN
        if self.value < self.floor:
            return "MISSED"
        if self.ran < self.cells:
            return f"{self.ran} of {self.cells} cells"
        return "goal" if self.goal is not None and self.value >= self.goal else "floor"


def goals(cells: Cells) -> Iterator[Goal]:
    for model, (floor, goal) in SINGLE.items():
        yield _mean(cells, f"{title(model)}, ×1, over the CUDA Graph", (model,), 1, over_sequential, floor, goal)
    yield _mean(cells, "the paper's six, ×1, over the CUDA Graph", PAPER_MODELS, 1, over_sequential, 3.3, 4.1)
    yield _mean(cells, "the paper's six, ×1, over torch.compile", PAPER_MODELS, 1, over_one_graph, 1.4, 1.7)
    yield _mean(cells, "the required seven, ×8, over torch.compile", REQUIRED_MODELS, 8, over_one_graph, 1.12)
    yield _mean(cells, "the required seven, ×32, over torch.compile", REQUIRED_MODELS, 32, over_one_graph, 1.05)
    ratios = [ratio for cell in cells.values() if (ratio := over_best_other(cell)) is not None]
    worst = min(ratios, default=None)
    yield Goal("the worst cell, over its best other system", NOT_SLOWER, None, worst, len(ratios), len(cells))
    verdicts = [cell.systems[OURS].verified is True for cell in cells.values() if OURS in cell.systems]
    share = sum(verdicts) / len(verdicts) if verdicts else None
    yield Goal("cells with right numbers of this engine", 1.0, None, share, len(verdicts), len(cells))


def goals_table(cells: Cells) -> str:
    rows = [[g.what, number(g.floor), number(g.goal), number(g.value), g.verdict] for g in goals(cells)]
    return markdown(["float16", "floor", "goal", "measured", ""], rows)


def ratios_table(cells: Cells) -> str:
    """Per cell, how much longer others take."""
    rows = []
    for key in sorted(cells, key=lambda key: (key.dtype, key.batch, key.model)):
        cell = cells[key]
        graph, other = cell.rival(ONE_GRAPH, OURS), cell.rival(others(cell), OURS)
        rows.append(
            [
                *(title(key.model), key.dtype, str(key.batch), number(over_sequential(cell))),
                *(number(over_one_graph(cell)), SHORT[graph].split(": ")[1] if graph else "–"),
                *(number(over_best_other(cell)), SHORT[other] if other else "–"),
            ]
        )
    header = ["model", "dtype", "batch", "over CUDA Graph", "over one graph", "which", "over best other", "which"]
    return markdown(header, rows)


def _mean(
    cells: Cells, what: str, models: Sequence[str], batch: int, ratio: Ratio, floor: float, goal: float | None = None
) -> Goal:
    found = [cells.get(CellKey(model, "float16", batch)) for model in models]
    values = [value for cell in found if cell and (value := ratio(cell)) is not None]
    return Goal(what, floor, goal, geometric_mean(values) if values else None, len(values), len(models))
