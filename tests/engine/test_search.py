"""Local search: never worse, always right, and better where there is something to find."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.moves import Layout, Neighbourhood
from opara_server.engine.policies import make_schedule
from opara_server.engine.profile import OperatorProfile, Profile, Roofline
from opara_server.engine.random_schedules import random_schedule
from opara_server.engine.schedule import Schedule, assemble, check
from opara_server.engine.search import TRIES, WINDOW, improve
from opara_server.engine.simulate import IDEAL, Latency, simulate
from tests.engine.dags import dags, ordered_pairs, random_dag, random_profile, randoms

SAVED_NASNET = Path(__file__).parents[2] / "bench" / "data" / "nasnet_a_large.json"
ROOFLINE = Roofline(1.0, 1e12)


def profile_of(*durations: float, footprint: float = 0.1) -> Profile:
    operators = tuple(OperatorProfile(duration, 0, 1, footprint=footprint) for duration in durations)
    return Profile(operators, ROOFLINE)


def score(graph: OperatorGraph, profile: Profile, schedule: Schedule) -> tuple[float, int, int]:
    makespan_us = simulate(graph, schedule, profile, Latency()).makespan_us
    return round(makespan_us, 6), schedule.synchronisations, schedule.streams


@settings(deadline=None, max_examples=25)
@given(dags(largest=3 * WINDOW), randoms, st.sampled_from(["sequential", "opara", "wavefront", "packed", "random"]))
def test_the_result_is_right_and_never_worse(graph: OperatorGraph, random: Random, policy: str) -> None:
    profile = random_profile(graph, random)
    given = random_schedule(graph, random) if policy == "random" else make_schedule(graph, profile, policy)
    found = improve(graph, profile, given, Latency(), evaluations=150, seed=1)
    check(graph, found)
    assert found.policy == given.policy
    assert found.streams <= given.streams
    assert found is given or score(graph, profile, found) < score(graph, profile, given)
    assert found == improve(graph, profile, given, Latency(), evaluations=150, seed=1)


def test_without_evaluations_nothing_changes() -> None:
    graph = random_dag(20, 1.5, 30, Random(0))
    schedule = random_schedule(graph, Random(0))
    assert improve(graph, Profile.uniform(20), schedule, Latency(), evaluations=0, seed=0) is schedule


def test_what_is_stopped_is_what_fewer_evaluations_find() -> None:
    graph = random_dag(60, 1.5, 30, Random(0))
    profile = random_profile(graph, Random(0))
    schedule = random_schedule(graph, Random(0))
    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) > 2

    stopped = improve(graph, profile, schedule, Latency(), evaluations=100 * TRIES, seed=0, stop=stop)
    assert stopped == improve(graph, profile, schedule, Latency(), evaluations=2 * TRIES, seed=0) != schedule
    assert len(asked) == 3
    never_begun = improve(graph, profile, schedule, Latency(), evaluations=TRIES, seed=0, stop=lambda: True)
    assert never_begun is schedule


def test_two_chains_leave_the_stream_that_they_share() -> None:
    graph = OperatorGraph.from_edges(7, [(0, 2), (2, 4), (1, 3), (3, 5)])
    bad = assemble("bad", graph, range(7), [0, 0, 0, 0, 0, 0, 1])
    found = improve(
        graph, profile_of(*[5.0] * 6, 1.0), bad, replace(IDEAL, dependency_us=1.0, wait_us=1.0), evaluations=300, seed=0
    )
    stream = {step.operator: step.stream for step in found.steps}
    assert stream[0] == stream[2] == stream[4]
    assert stream[1] == stream[3] == stream[5]
    assert stream[0] != stream[1]
    assert found.synchronisations == 0


def test_barriers_that_help_nobody_go() -> None:
    graph = OperatorGraph.from_edges(4, [(0, 2), (1, 3)])
    profile, latency = profile_of(1.0, 9.0, 9.0, 1.0), replace(IDEAL, dependency_us=1.0)
    barrier = make_schedule(graph, profile, "wavefront")
    assert simulate(graph, barrier, profile, latency).makespan_us == 19.0
    found = improve(graph, profile, barrier, latency, evaluations=200, seed=0)
    assert simulate(graph, found, profile, latency).makespan_us == 11.0
    assert found.synchronisations == 0


def test_what_is_not_urgent_is_held_where_the_device_is_full() -> None:
    graph = OperatorGraph.from_edges(3, [(0, 1)])
    large, small = profile_of(10.0, footprint=0.9).operators, profile_of(10.0).operators
    profile = Profile((*large, *small, *large), ROOFLINE)
    crowded = assemble("crowded", graph, range(3), [0, 0, 1])
    assert simulate(graph, crowded, profile, IDEAL).makespan_us == pytest.approx(28.0)
    found = improve(graph, profile, crowded, IDEAL, evaluations=200, seed=0)
    assert simulate(graph, found, profile, IDEAL).makespan_us == pytest.approx(20.0)
    assert ordered_pairs(found)[2] == 1 << 0


def test_waits_are_saved_where_no_time_is() -> None:
    graph = OperatorGraph.from_edges(5, [(0, 1), (0, 2), (1, 3), (2, 4), (3, 4)])
    profile = profile_of(1.0, 5.0, 1.0, 5.0, 1.0)
    wasteful = assemble("wasteful", graph, range(5), [0, 1, 0, 2, 1])
    assert wasteful.synchronisations == 4
    found = improve(graph, profile, wasteful, IDEAL, evaluations=300, seed=0)
    assert simulate(graph, found, profile, IDEAL).makespan_us == 12.0
    assert (found.synchronisations, found.streams) == (2, 2)


def test_a_large_schedule_is_searched_in_all_its_windows() -> None:
    data = json.loads(SAVED_NASNET.read_text())
    graph, profile = OperatorGraph.from_json(data["graph"]), Profile.from_json(data["profile"])
    schedule = make_schedule(graph, profile, "critical_path")
    found = improve(graph, profile, schedule, Latency(), evaluations=1000, seed=0)
    check(graph, found)
    assert score(graph, profile, found)[0] < 0.97 * score(graph, profile, schedule)[0]
    before, after = ordered_pairs(schedule), ordered_pairs(found)
    changed = [place for place, operator in enumerate(schedule.order) if before[operator] != after[operator]]
    assert min(changed) < len(graph) / 8
    assert max(changed) > len(graph) * 7 / 8


@settings(deadline=None, max_examples=60)
@given(dags(largest=40), randoms, st.integers(0, 3))
def test_every_move_keeps_a_layout_right(graph: OperatorGraph, random: Random, fixed: int) -> None:
    schedule = random_schedule(graph, random, 4)
    layout = first = Layout.of(graph, schedule)
    assert layout.schedule(graph, "random") == schedule
    starts = [start for start, _ in simulate(graph, schedule, random_profile(graph, random), Latency()).intervals]
    around = Neighbourhood(graph, fixed, streams=4)
    for _ in range(60):
        layout = around.propose(layout, starts, random) or layout
        check(graph, layout.schedule(graph, "changed"))
        assert layout.order[:fixed] == first.order[:fixed]
        assert len(set(layout.stream)) <= 4
