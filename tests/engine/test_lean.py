"""Lean schedules: right, within the limit, and as fast by simulation where memory is no obstacle."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from opara_server.engine.affordable import affordable_order
from opara_server.engine.arena import ALIGNMENT
from opara_server.engine.graph import OperatorGraph
from opara_server.engine.lean import lean
from opara_server.engine.memory import live_bytes, memory_bytes
from opara_server.engine.policies import make_schedule
from opara_server.engine.profile import OperatorProfile, Profile, Roofline
from opara_server.engine.schedule import Schedule, assemble, check
from opara_server.engine.simulate import IDEAL, Latency, simulate
from tests.engine.dags import QUICK_POLICIES, explicit, ordered_pairs, programs, random_profile, randoms
from tests.engine.test_arena import resized
from tests.engine.test_schedule import random_schedule

SAVED = Path(__file__).parents[2] / "bench" / "data"


def sequential(graph: OperatorGraph) -> Schedule:
    return assemble("sequential", graph, range(len(graph)), [0] * len(graph))


def streams(schedule: Schedule) -> set[frozenset[int]]:
    """Which operators share a stream."""
    found: dict[int, set[int]] = {}
    for step in schedule.steps:
        found.setdefault(step.stream, set()).add(step.operator)
    return {frozenset(members) for members in found.values()}


@settings(deadline=None, max_examples=60)
@given(programs(largest=40).map(explicit), randoms, st.sampled_from([*QUICK_POLICIES, "critical_path:2", "random"]))
def test_a_lean_schedule_is_right_and_within_the_limit(graph: OperatorGraph, random: Random, policy: str) -> None:
    graph, profile = resized(graph, random), random_profile(graph, random)
    schedule = random_schedule(graph, random, 5) if policy == "random" else make_schedule(graph, profile, policy)
    limit = int(random.choice([1.0, 1.1, 1.5]) * memory_bytes(graph, sequential(graph)))
    assume(memory_bytes(graph, schedule) > limit)
    found = lean(graph, schedule, profile, Latency(), limit)
    assert found == lean(graph, schedule, profile, Latency(), limit)
    if found is not None:
        check(graph, found)
        assert memory_bytes(graph, found) <= limit
        assert streams(found) == streams(schedule)
        assert found.policy == f"lean({schedule.policy})"


def small_kernels(*durations_us: float) -> Profile:
    """Operators that leave each other all the room that they want."""
    return Profile(tuple(OperatorProfile(us, 0, 1, footprint=0.0) for us in durations_us), Roofline(1e12, 1e12))


def chains(count: int, length: int) -> OperatorGraph:
    """Side by side, every buffer in the arena."""
    edges = [(c * length + i, c * length + i + 1) for c in range(count) for i in range(length - 1)]
    return explicit(OperatorGraph.from_edges(count * length, edges))


def test_what_never_runs_at_once_by_chance_is_made_never_to() -> None:
    """Of two chains the second's first operator is long: its end comes long after all of the other, but nothing says so
    until it waits for that, which costs nothing."""
    graph = explicit(OperatorGraph.from_edges(5, [(0, 1), (2, 3), (3, 4)]))
    profile = small_kernels(10.0, 10.0, 100.0, 10.0, 10.0)
    schedule = assemble("test", graph, range(5), [0, 0, 1, 1, 1])
    assert memory_bytes(graph, schedule) == 4 * ALIGNMENT
    found = lean(graph, schedule, profile, IDEAL, 3 * ALIGNMENT)
    assert found is not None
    assert memory_bytes(graph, found) == 3 * ALIGNMENT
    assert found.synchronisations == 1
    assert simulate(graph, found, profile, IDEAL).makespan_us == pytest.approx(120.0)
    before, after = ordered_pairs(schedule), ordered_pairs(found)
    assert all(before[operator] | after[operator] == after[operator] for operator in range(5))


def test_operators_are_put_off_until_there_is_room() -> None:
    """Four chains at once need two buffers each; in half of the memory some have to wait, but not each for all."""
    graph = chains(4, 3)
    profile = small_kernels(*[10.0] * 12)
    schedule = assemble("test", graph, range(12), [operator // 3 for operator in range(12)])
    assert memory_bytes(graph, schedule) == 8 * ALIGNMENT
    found = lean(graph, schedule, profile, IDEAL, 4 * ALIGNMENT)
    assert found is not None
    assert memory_bytes(graph, found) <= 4 * ALIGNMENT
    assert simulate(graph, schedule, profile, IDEAL).makespan_us == pytest.approx(30.0)
    assert 60.0 <= simulate(graph, found, profile, IDEAL).makespan_us <= 90.0  # not 120
    assert lean(graph, schedule, profile, IDEAL, ALIGNMENT) is None


def test_urgent_streams_stay_urgent() -> None:
    graph = chains(4, 3)
    schedule = Schedule("test", assemble("test", graph, range(12), [o // 3 for o in range(12)]).steps, frozenset({3}))
    found = lean(graph, schedule, Profile.uniform(12), IDEAL, 4 * ALIGNMENT)
    assert found is not None
    assert {step.operator for step in found.steps if step.stream in found.urgent} == {9, 10, 11}


def test_blocks_of_an_allocator_stay_where_they_are() -> None:
    graph = OperatorGraph.from_edges(4, [(0, 1), (2, 3)])
    schedule = assemble("test", graph, range(4), [0, 0, 1, 1])
    assert lean(graph, schedule, Profile.uniform(4), IDEAL, memory_bytes(graph, schedule) - 1) is None


@pytest.mark.parametrize("model", ["hrnet_w18_small_v2", "t5_small"])
@pytest.mark.parametrize("policy", ["opara", "critical_path:4"])
def test_real_models_keep_within_a_tenth_of_sequential_and_their_speed(model: str, policy: str) -> None:
    data = json.loads((SAVED / f"{model}.json").read_text())
    graph, profile = explicit(OperatorGraph.from_json(data["graph"])), Profile.from_json(data["profile"])
    schedule = make_schedule(graph, profile, policy)
    limit = int(1.1 * memory_bytes(graph, sequential(graph)))
    assert memory_bytes(graph, schedule) > 1.2 * limit
    found = lean(graph, schedule, profile, Latency(), limit)
    assert found is not None
    assert memory_bytes(graph, found) <= limit
    before, after = (simulate(graph, s, profile, Latency()).makespan_us for s in (schedule, found))
    assert after <= 1.01 * before


@settings(deadline=None, max_examples=80)
@given(programs(largest=60).map(explicit), randoms, st.sampled_from([1.0, 1.2, 100.0]))
def test_an_affordable_order_is_topological_and_within_the_capacity(
    graph: OperatorGraph, random: Random, share: float
) -> None:
    graph = resized(graph, random)
    preferred = random_schedule(graph, random, 1).order
    least = live_bytes(graph, range(len(graph)))
    order = affordable_order(graph, preferred, int(share * least))
    assert sorted(order) == list(range(len(graph)))
    place = {operator: number for number, operator in enumerate(order)}
    assert all(place[source] < place[o] for o, sources in enumerate(graph.predecessors) for source in sources)
    assert live_bytes(graph, order) <= share * least
    if live_bytes(graph, preferred) == 0 or share == 100.0:
        assert order == preferred
    with pytest.raises(ValueError, match="too few"):
        affordable_order(graph, preferred, least - 1)


def test_an_affordable_order_leaves_the_preferred_one_only_where_it_must() -> None:
    graph = chains(3, 2)
    across = (0, 2, 4, 1, 3, 5)
    assert affordable_order(graph, across, 6 * ALIGNMENT) == across
    assert affordable_order(graph, across, 4 * ALIGNMENT) == across
    assert affordable_order(graph, across, 3 * ALIGNMENT) == (0, 2, 1, 4, 3, 5)
    assert affordable_order(graph, across, 2 * ALIGNMENT) == (0, 1, 2, 3, 4, 5)
