"""Medians, goals and tables of results that nobody measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.serving import tables
from bench.serving.goals import GOALS, Goal, ratio, spread, verdict
from bench.serving.results import Cell, Entrant, Measurement, Results, load, save


def measured(requests_per_s: float, p50_us: float = 100.0, problem: str = "") -> Measurement:
    return Measurement(requests_per_s, p50_us, 2 * p50_us, 50.0, (problem,) if problem else ())


def entrant(name: str, family: str, processes: int = 1) -> Entrant:
    return Entrant(name, family, name.upper(), processes, {"grpcio": "1.85.1"})


ENTRANTS = (entrant("opara", "opara"), entrant("opara -w 2", "opara", 2), entrant("echo-1", "echo"))
MISSING = Entrant("kserve", "kserve", "KServe", 1, {}, failed="kserve is not\ninstalled")


def results(**rounds: list[Measurement]) -> Results:
    """``rounds``: of tiny, 32 callers, by server; underscores are blanks and dashes."""
    names = {"opara": "opara", "opara_2": "opara -w 2", "echo": "echo-1"}
    cells = {Cell("2+2", "tiny", 32, names[name]): found for name, found in rounds.items()}
    one_caller = {Cell("2+2", "tiny", 1, names[name]): found for name, found in rounds.items()}
    return Results({"cpu": "a CPU"}, {"rounds": 3}, {"2+2": (*ENTRANTS, MISSING)}, cells | one_caller)


TINY = Goal("tiny", "echo", 0.4, 0.75)
TINY_LATENCY = Goal("tiny", "echo", 1.3, 1.3, callers=1)


def test_the_median_is_of_valid_rounds() -> None:
    found = results(opara=[measured(10), measured(1, problem="lost"), measured(30), measured(20)])
    median = found.median(Cell("2+2", "tiny", 32, "opara"))
    assert median is not None
    assert (median.requests_per_s, median.p50_us, median.problems) == (20, 100, ())


def test_without_a_majority_of_valid_rounds_there_is_none() -> None:
    found = results(opara=[measured(10), measured(1, problem="lost")])
    assert found.median(Cell("2+2", "tiny", 32, "opara")) is None
    assert found.median(Cell("2+2", "tiny", 8, "opara")) is None


def test_the_best_of_ours_counts() -> None:
    assert ratio(results(opara=[measured(30)], opara_2=[measured(60)], echo=[measured(80)]), TINY) == 0.75


def test_latency_is_of_one_process() -> None:
    found = results(opara=[measured(1, 150)], opara_2=[measured(1, 110)], echo=[measured(1, 100)])
    assert ratio(found, TINY_LATENCY) == 1.5


def test_no_ratio_without_both() -> None:
    assert ratio(results(opara=[measured(30)]), TINY) is None
    assert ratio(results(echo=[measured(30)]), TINY) is None


def test_the_spread_is_of_rounds_in_which_both_are_valid() -> None:
    lost = measured(1, problem="lost")
    found = results(opara=[measured(60), lost, measured(90), measured(40)], echo=[measured(80), *[measured(100)] * 3])
    assert spread(found, TINY) == (0.4, 0.9)
    assert spread(results(opara=[measured(30)]), TINY) is None
    late = results(opara=[measured(1, 90), measured(1, 150)], echo=[measured(1, 100), measured(1, 100)])
    assert spread(late, TINY_LATENCY) == (0.9, 1.5)


@pytest.mark.parametrize(
    ("goal", "found", "expected"),
    [
        (TINY, 0.75, "goal reached"),
        (TINY, 0.74, "floor held"),
        (TINY, 0.39, "MISSED"),
        (TINY, None, "not measured"),
        (TINY_LATENCY, 1.3, "goal reached"),
        (TINY_LATENCY, 1.31, "MISSED"),
    ],
)
def test_verdicts(goal: Goal, found: float | None, expected: str) -> None:
    assert verdict(goal, found) == expected


def test_a_goal_is_never_easier_than_its_floor() -> None:
    assert all(goal.met(goal.goal, goal.floor) for goal in GOALS)


def test_json_and_back(tmp_path: Path) -> None:
    found = results(opara=[measured(10), measured(20, problem="lost")], echo=[measured(30)])
    save(found, tmp_path / "new" / "serving.json")
    again = load(tmp_path / "new" / "serving.json")
    assert again.rounds == {cell: list(rounds) for cell, rounds in found.rounds.items()}
    assert (again.environment, again.settings) == (found.environment, found.settings)
    assert [one.title for one in again.entrants["2+2"]] == ["OPARA", "OPARA -W 2", "ECHO-1", "KServe"]


def test_the_report_has_figures_ratios_and_what_is_missing() -> None:
    found = results(
        opara=[measured(1000), measured(3000), measured(2000)],
        opara_2=[measured(1, problem="a sampled answer is wrong")],
        echo=[measured(4000)] * 3,
    )
    lines = tables.report(found).splitlines()
    assert "| OPARA | 2,000 | 100 | 200 | 50 | – |" in lines
    assert "| ECHO-1 | 4,000 | 100 | 200 | 50 | 0.50× |" in lines
    assert "| OPARA -W 2 | not valid |  |  |  |  |" in lines
    over_echo = (
        "| echo | tiny, requests/s, 32 callers | 2+2 | ≥ 0.4× | ≥ 0.75× | 0.50× | 0.25 to 0.75 | floor held | OPARA |"
    )
    assert over_echo in lines
    assert "| kserve | tiny, requests/s, 32 callers | 2+2 | ≥ 5× | ≥ 10× | – | – | not measured | OPARA |" in lines
    assert "- KServe: kserve is not installed" in lines
    assert "- opara -w 2, tiny, 32 callers, 2+2: a sampled answer is wrong" in lines


def test_idle_cores_are_those_of_the_first_layout() -> None:
    def alone(idle_cores: float) -> Entrant:
        return Entrant("opara", "opara", "OPARA", 1, {"grpcio": "1.85.1"}, idle_cores)

    found = Results({}, {}, {"2+2": [alone(0.25)], "3+1": [alone(0.5), *ENTRANTS[2:]]}, {})
    rows = tables.versions(found).splitlines()[2:]
    assert rows == ["| OPARA | grpcio 1.85.1 | 0.25 |", "| ECHO-1 | grpcio 1.85.1 | 0.00 |"]
