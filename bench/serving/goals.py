"""Ratios that are asked of the request path, and what was measured of them. All in one interleaved run, equal cores."""

from __future__ import annotations

from dataclasses import dataclass

from bench.serving.results import Cell, Entrant, Measurement, Results

OURS, ECHO = "opara", "echo"


@dataclass(frozen=True)
class Goal:
    """Requests/s of ours over ``other``'s, at least; or, with one caller, p50 over the echo's, at most: there one
    process each. Of several sets of options of either the best counts."""

    payload: str
    other: str
    floor: float
    goal: float
    layout: str = "2+2"
    callers: int = 32

    @property
    def of_latency(self) -> bool:
        return self.callers == 1

    def met(self, ratio: float, bound: float) -> bool:
        return ratio <= bound if self.of_latency else ratio >= bound


GOALS = (
    Goal("tiny", "mlserver", 5, 10),
    Goal("mlp", "mlserver", 5, 10),
    Goal("image", "mlserver", 15, 30),
    Goal("tiny", "kserve", 5, 10),
    Goal("mlp", "kserve", 5, 10),
    Goal("image", "kserve", 1.5, 2.1),
    Goal("tiny", "pytriton", 4, 10),
    Goal("mlp", "pytriton", 4, 10),
    Goal("image", "pytriton", 2.5, 3.5),
    Goal("mlp", "triton", 1.2, 2.5, layout="3+1"),
    Goal("tiny", ECHO, 0.4, 0.75),
    Goal("image", ECHO, 0.65, 0.9),
    Goal("tiny", ECHO, 1.3, 1.3, callers=1),
    Goal("image", ECHO, 1.3, 1.3, callers=1),
)


def best(results: Results, goal: Goal, family: str) -> tuple[Entrant, Measurement] | None:
    """The family's best under the goal's load, None where none was measured."""
    measured = [
        (entrant, found)
        for entrant in results.entrants.get(goal.layout, ())
        if entrant.family == family and (entrant.processes == 1 or not goal.of_latency)
        if (found := results.median(Cell(goal.layout, goal.payload, goal.callers, entrant.name)))
    ]
    if goal.of_latency:
        return min(measured, key=lambda pair: pair[1].p50_us, default=None)
    return max(measured, key=lambda pair: pair[1].requests_per_s, default=None)


def ratio(results: Results, goal: Goal) -> float | None:
    """Ours over the other's; None where either was not measured."""
    ours, other = best(results, goal, OURS), best(results, goal, goal.other)
    if ours is None or other is None:
        return None
    if goal.of_latency:
        return ours[1].p50_us / other[1].p50_us
    return ours[1].requests_per_s / other[1].requests_per_s


def spread(results: Results, goal: Goal) -> tuple[float, float] | None:
    """The least and the greatest ratio of a round, of the two whose medians are compared; None if there is none."""
    ours, other = best(results, goal, OURS), best(results, goal, goal.other)
    if ours is None or other is None:
        return None
    cells = [Cell(goal.layout, goal.payload, goal.callers, entrant.name) for entrant, _ in (ours, other)]
    pairs = zip(*(results.rounds[cell] for cell in cells), strict=False)
    valid = [(mine, yours) for mine, yours in pairs if not mine.problems and not yours.problems]
    if goal.of_latency:
        ratios = [mine.p50_us / yours.p50_us for mine, yours in valid]
    else:
        ratios = [mine.requests_per_s / yours.requests_per_s for mine, yours in valid]
    return (min(ratios), max(ratios)) if ratios else None


def verdict(goal: Goal, measured: float | None) -> str:
    if measured is None:
        return "not measured"
    if goal.met(measured, goal.goal):
        return "goal reached"
    return "floor held" if goal.met(measured, goal.floor) else "MISSED"
