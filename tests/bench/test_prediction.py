"""The measurement of the simulator, on schedules whose measured times are made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from bench.prediction import CLOSE, Measured, Record, evaluate, load, report, save, spearman, table
from opara_server.engine.policies import make_schedule
from opara_server.engine.profile import Roofline
from opara_server.engine.random_schedules import random_schedules
from opara_server.engine.simulate import Latency, simulate
from tests.engine.dags import googlenet, random_profile

BENCH = Path(__file__).parents[2] / "bench"
GRAPH = googlenet()
PROFILE = replace(random_profile(GRAPH, Random(1)), roofline=Roofline(1.0, 1e12))
SCHEDULES = [make_schedule(GRAPH, PROFILE, "sequential"), *random_schedules(GRAPH, 24, 0)]
PREDICTED = [simulate(GRAPH, schedule, PROFILE, Latency()).makespan_us for schedule in SCHEDULES]


def record(measured: Callable[[float], float]) -> Record:
    """``measured`` of the predicted time of each."""
    times = zip(SCHEDULES, PREDICTED, strict=True)
    return Record(
        "net",
        "aten",
        "float16",
        1,
        {"gpu": "none"},
        GRAPH,
        PROFILE,
        tuple(Measured(s, measured(p), 0.01) for s, p in times),
    )


def test_a_device_that_is_twice_as_fast_is_ranked_without_fault() -> None:
    accuracy = evaluate(record(lambda predicted: predicted / 2), Latency())
    assert accuracy.rank_correlation == pytest.approx(1)
    assert accuracy.scale == pytest.approx(2)
    assert accuracy.error == pytest.approx(1)
    assert accuracy.top == 1
    assert accuracy.schedules == 25
    assert accuracy.range == pytest.approx(max(PREDICTED[1:]) / min(PREDICTED[1:]))


def test_a_device_on_which_slow_is_fast_is_ranked_backwards_and_its_best_is_missed() -> None:
    accuracy = evaluate(record(lambda predicted: 1e6 / predicted), Latency())
    assert accuracy.rank_correlation == pytest.approx(-1)
    assert accuracy.top == pytest.approx(max(PREDICTED) / sorted(PREDICTED)[4])
    assert "(missed)" in table([accuracy])


def test_the_policies_do_not_count_for_the_rank_but_for_the_top() -> None:
    spoilt = record(lambda predicted: predicted)
    sequential = Measured(SCHEDULES[0], 1.0, 0.01)
    accuracy = evaluate(Record(**{**vars(spoilt), "measured": (sequential, *spoilt.measured[1:])}), Latency())
    assert accuracy.rank_correlation == pytest.approx(1)
    assert accuracy.top == pytest.approx(min(PREDICTED))


def test_times_that_cannot_be_trusted_are_counted_and_left_out() -> None:
    right = record(lambda predicted: predicted)
    disturbed = tuple(Measured(m.schedule, 1.0, 0.3) for m in right.measured[:3])
    accuracy = evaluate(replace(right, measured=(*disturbed, *right.measured[3:])), Latency())
    assert (accuracy.schedules, accuracy.unsteady, accuracy.random) == (22, 3, 22)
    assert accuracy.rank_correlation == pytest.approx(1)
    assert accuracy.top == 1
    unknown = evaluate(replace(right, measured=disturbed), Latency())
    assert (unknown.schedules, unknown.rank_correlation, unknown.top) == (0, None, None)
    assert "in 1 of 1." in table([accuracy, unknown]), "what is unknown neither holds nor misses"


def test_few_schedules_and_equal_ones_are_listed_and_judge_nothing() -> None:
    right, backwards = record(lambda predicted: predicted), record(lambda predicted: 1e6 / predicted)
    few = evaluate(replace(backwards, measured=backwards.measured[:20]), Latency())
    alike = evaluate(record(lambda _predicted: 100.0), Latency())
    enough = evaluate(replace(right, measured=right.measured[1:21]), Latency())
    assert (few.schedules, few.random, enough.random) == (20, 19, 20), "the sequential schedule is none of them"
    assert (few.few, enough.few, alike.alike) == (True, False, True)
    assert few.rank_correlation == pytest.approx(-1)
    text = table([few, alike, enough])
    assert text.count("| net float16 ×1 |") == 3
    assert text.count("| not judged |") == 2, "neither its rank nor its top"
    assert "Median rank correlation 1.000 over 1 of 3 records." in text
    assert "in 1 of 1." in text
    assert text.endswith(
        "Not judged, with fewer than 20 steady random schedules: net float16 ×1 (19). All alike: net float16 ×1."
    )


def test_schedules_that_only_noise_tells_apart_are_all_alike() -> None:
    random = Random(0)
    alike = evaluate(record(lambda _predicted: 100 * random.uniform(1, 1.02)), Latency())
    assert alike.alike
    assert alike.rank_correlation is None
    assert "| all alike |" in table([alike])
    assert alike.noise == pytest.approx(0.01)
    assert not evaluate(record(lambda predicted: predicted), Latency()).alike


def test_a_record_survives_a_file(tmp_path: Path) -> None:
    saved = record(lambda predicted: round(predicted, 3))
    path = save(saved, tmp_path / "new")
    assert path.name == "net-aten-float16-1.json.gz"
    assert load(path) == saved
    assert path.read_bytes() == save(saved, tmp_path).read_bytes()


def test_a_report_is_a_table_and_its_data(tmp_path: Path) -> None:
    output = tmp_path / "results" / "simulator.json"
    text = report([record(lambda predicted: predicted), record(lambda predicted: 1e6 / predicted)], Latency(), output)
    assert output.with_suffix(".md").read_text() == text + "\n"
    assert "hold one within 3% of the best in 1 of 2" in text
    assert text.startswith("# How well the simulator predicts\n\ngpu none.\n\nEngine sources unknown.\n")
    columns = text[text.index("| model") :].splitlines()[0].strip("| ").split(" | ")
    explained = text[: text.index("| model")].replace("\n", " ")
    assert [name for name in columns if f"*{name}*" not in explained] == ["model"]
    written = json.loads(output.read_text())
    assert written["environments"] == [{"gpu": "none"}]
    assert [round(result["rank_correlation"]) for result in written["results"]] == [1, -1]


def test_the_committed_table_is_what_the_simulator_says_of_the_committed_records() -> None:
    accuracies = [evaluate(load(path), Latency()) for path in sorted((BENCH / "data" / "schedules").glob("*.json.gz"))]
    assert table(accuracies) in (BENCH / "results" / "simulator.md").read_text()
    judged = [accuracy for accuracy in accuracies if not (accuracy.few or accuracy.alike)]
    assert median(a.rank_correlation for a in judged if a.rank_correlation is not None) >= 0.8
    assert all(a.top is not None and a.top <= CLOSE for a in judged)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2))
def test_spearman_is_scipys_ties_included(pairs: list[tuple[int, int]]) -> None:
    first, second = zip(*pairs, strict=True)
    found = spearman(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(first, second).statistic)
