"""Calibration finds the latencies that made the measured times."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from statistics import mean

import pytest

from bench.calibration import described, fit, loss, thinned
from bench.prediction import Measured, Record, evaluate
from opara_server.engine.policies import make_schedule
from opara_server.engine.profile import OperatorProfile, Profile, Roofline
from opara_server.engine.random_schedules import random_schedules
from opara_server.engine.simulate import Latency, simulate
from tests.engine.dags import random_dag


def record_of(seed: int, hidden: Latency, count: int = 12) -> Record:
    random = Random(seed)
    graph = random_dag(30, 1.5, 8, random)
    operators = tuple(OperatorProfile(random.uniform(1, 8), 0, 1, footprint=0.3) for _ in graph.operators)
    profile = Profile(operators, Roofline(1.0, 1e12))
    schedules = [make_schedule(graph, profile, "sequential"), *random_schedules(graph, count - 1, seed)]
    measured = tuple(Measured(s, simulate(graph, s, profile, hidden).makespan_us, 0.01) for s in schedules)
    return Record("net", "aten", "float16", 1, {}, graph, profile, measured)


def test_it_finds_what_the_times_were_made_with() -> None:
    hidden = Latency(1.1, 0.3, 0.5, 0.15, 0.1)
    records = [record_of(seed, hidden) for seed in range(3)]
    start = replace(hidden, dependency_us=0.7, company=0.3)

    def loss_of(latency: Latency) -> float:
        return mean(loss(latency, record) for record in records)

    fitted = fit(loss_of, start)
    assert loss_of(fitted) < loss_of(start) / 4
    assert fitted.dependency_us == pytest.approx(hidden.dependency_us, rel=0.15)


def test_whole_numbers_stay_whole() -> None:
    fitted = fit(lambda latency: abs(latency.reach - 6) + latency.join_us, Latency())
    assert (fitted.reach, fitted.join_us) == (6, 0.0)
    assert isinstance(fitted.reach, int)


def test_times_that_cannot_be_trusted_do_not_count() -> None:
    record = record_of(0, Latency())
    disturbed = replace(record.measured[0], median_us=1e6, spread=0.5)
    assert loss(Latency(), replace(record, measured=(disturbed, *record.measured[1:]))) == pytest.approx(0)


def test_a_perfect_prediction_has_no_loss_and_a_wrong_one_has() -> None:
    record = record_of(0, Latency())
    assert loss(Latency(), record) == pytest.approx(0)
    assert loss(Latency(5.0), record) > 0.1


def test_thinning_takes_evenly_and_no_more_than_asked_for() -> None:
    record = record_of(1, Latency(), count=10)
    assert thinned(record, 4).measured == record.measured[::3]
    assert thinned(record, 100) == record


def test_what_is_written_tells_the_fitted_and_the_engine_s_own() -> None:
    found = [evaluate(record_of(0, Latency()), Latency())]
    text = described(replace(Latency(), company=0.5), found, found, 16)
    assert "company=0.5" in text
    assert f"`{Latency()}`" in text
    assert text.count("Median rank correlation") + text.count("No rank correlation") == 2
    assert "## Each model" not in described(Latency(), found, [], 16)
