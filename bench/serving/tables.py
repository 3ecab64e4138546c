"""From results to Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.serving.goals import GOALS, OURS, Goal, best, ratio, spread, verdict
from bench.serving.results import Cell, Entrant, Measurement, Results
from bench.tables import markdown, number

HOW = """\
Servers and load generator on one machine, over loopback, in turns: in each round every load goes to one server after
the other. Figures are medians of the rounds; *by round*: the least and the greatest ratio of a single one. All servers
run at once, on the same cores, and only one is called. Every server has the same malloc settings and one thread for
PyTorch. *requests/s*: h2load, which posts ready requests; *p50*, *p99*: with one caller as a synchronous gRPC client
sees them, with more as h2load does; *CPU µs*: of all of a server's processes, per request. *ours over it*: requests/s
of the best of ours over those of this row. The echoes send back the request's bytes, with no model behind them.

A round counts only if all answers came with all of their bytes, if sampled calls before and after, each with other
values, were answered rightly, and, of opara-serve, if its own count of requests agrees."""
SHAPES = {"tiny": "FP32[16], identity", "image": "FP32[3,224,224], identity", "mlp": "MLP 784-512-10, FP32"}


def report(results: Results) -> str:
    """The whole of ``serving.md``."""
    parts = ["# The request path beside other servers", _machine(results), HOW, "## Floors and goals", goals(results)]
    for layout, entrants in results.entrants.items():
        server, generator = layout.split("+")
        parts.append(f"## {server} cores for the server, {generator} for the generator")
        loads = sorted({(cell.payload, cell.callers) for cell in results.rounds if cell.layout == layout}, key=_order)
        for payload, callers in loads:
            several = "caller" if callers == 1 else "callers"
            parts += [f"{SHAPES[payload]}, {callers} {several}:", load_table(results, layout, payload, callers)]
        parts += [_absent(entrants), _ended(entrants)]
    parts += [_invalid(results), "## Versions", versions(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def goals(results: Results) -> str:
    header = ["ours over", "load", "cores", "floor", "goal", "measured", "by round", "", "ours, best"]
    return markdown(header, (_goal_row(results, goal) for goal in GOALS))


def load_table(results: Results, layout: str, payload: str, callers: int) -> str:
    header = ["server", "requests/s", "p50 µs", "p99 µs", "CPU µs", "ours over it"]
    cells = {one: Cell(layout, payload, callers, one.name) for one in results.entrants[layout]}
    found = {one: results.median(cell) for one, cell in cells.items() if cell in results.rounds}
    ours = max((it.requests_per_s for one, it in found.items() if it and one.family == OURS), default=None)
    return markdown(header, (_load_row(one, measured, ours) for one, measured in found.items()))


def _load_row(entrant: Entrant, measured: Measurement | None, ours: float | None) -> list[str]:
    if measured is None:
        return [entrant.title, "not valid", *[""] * 4]
    over = ours / measured.requests_per_s if ours and entrant.family != OURS else None
    figures = (measured.requests_per_s, measured.p50_us, measured.p99_us, measured.cpu_us)
    return [entrant.title, *(f"{figure:,.0f}" for figure in figures), number(over, unit="×")]


def versions(results: Results) -> str:
    first: dict[str, Entrant] = {}  # the first layout is that of all servers: there each was idle beside the others
    for entrants in results.entrants.values():
        for one in entrants:
            first.setdefault(one.name, one)
    rows = [
        [one.title, ", ".join(f"{name} {found}" for name, found in one.versions.items()), f"{one.idle_cores:.2f}"]
        for one in first.values()
        if not one.failed
    ]
    return markdown(["server", "versions", "cores busy while idle"], rows)


def _goal_row(results: Results, goal: Goal) -> list[str]:
    measured, ours = ratio(results, goal), best(results, goal, OURS)
    rounds = spread(results, goal)
    sign, what = ("≤", "p50, 1 caller") if goal.of_latency else ("≥", f"requests/s, {goal.callers} callers")
    return [
        *(goal.other, f"{goal.payload}, {what}", goal.layout, f"{sign} {goal.floor:g}×", f"{sign} {goal.goal:g}×"),
        *(
            number(measured, unit="×"),
            f"{rounds[0]:.2f} to {rounds[1]:.2f}" if rounds else "–",
            verdict(goal, measured),
        ),
        ours[0].title if ours else "",
    ]


def _machine(results: Results) -> str:
    told = {**results.environment, **results.settings}
    return "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items() if name != "engine") + "."


def _order(load: tuple[str, int]) -> tuple[int, int]:
    return list(SHAPES).index(load[0]), load[1]


def _absent(entrants: Sequence[Entrant]) -> str:
    return _listed("Did not take part", (f"{one.title}: {one.failed}" for one in entrants if one.failed))


def _ended(entrants: Sequence[Entrant]) -> str:
    ended = (f"{one.title}: {one.restarts}" for one in entrants if one.restarts)
    return _listed("Ended by themselves and were started again, so many times", ended)


def _invalid(results: Results) -> str:
    return _listed("Rounds that do not count", results.problems())


def _listed(what: str, items: Iterable[str]) -> str:
    lines = [f"- {' '.join(item.split())}" for item in items]
    return "\n".join([f"{what}:", "", *lines]) if lines else ""
