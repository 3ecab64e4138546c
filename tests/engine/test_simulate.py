"""The simulator against schedules computed by hand, and against a slower simulation with exact numbers."""

from __future__ import annotations

from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.policies import POLICIES, make_schedule
from opara_server.engine.profile import OperatorProfile, Profile, Roofline
from opara_server.engine.schedule import Schedule, ScheduleError, Step, assemble, fold
from opara_server.engine.simulate import Latency, simulate
from tests.engine.dags import dags, ordered_pairs, random_profile, randoms


def profile_of(*operators: tuple[float, float]) -> Profile:
    """From (duration, footprint) per operator."""
    profiles = tuple(OperatorProfile(duration, 0, 1, footprint=footprint) for duration, footprint in operators)
    return Profile(profiles, Roofline(1.0, 1.0))


def run_apart(profile: Profile) -> tuple[tuple[float, float], ...]:
    """The intervals of independent operators, each on a stream of its own."""
    count = len(profile.operators)
    graph = OperatorGraph.from_edges(count, [])
    return simulate(graph, assemble("test", graph, range(count), range(count)), profile, Latency()).intervals


def test_a_chain_pays_a_dependency_between_operators() -> None:
    graph = OperatorGraph.from_edges(3, [(0, 1), (1, 2)])
    simulation = simulate(
        graph, assemble("test", graph, range(3), [0] * 3), profile_of((5, 1), (3, 1), (2, 1)), Latency(1.5)
    )
    assert simulation.intervals == ((0.0, 5.0), (6.5, 9.5), (11.0, 13.0))
    assert simulation.makespan_us == 13.0


def test_a_fork_and_a_join_across_streams() -> None:
    graph = OperatorGraph.from_edges(4, [(0, 1), (0, 2), (1, 3), (2, 3)])
    profile = profile_of((2, 1), (4, 0.25), (6, 0.25), (1, 1))
    simulation = simulate(graph, assemble("test", graph, range(4), [0, 0, 1, 0]), profile, Latency(1.0))
    assert simulation.intervals == ((0.0, 2.0), (3.0, 7.0), (3.0, 9.0), (10.0, 11.0))


def test_a_stream_is_a_queue_even_without_an_edge() -> None:
    graph = OperatorGraph.from_edges(2, [])
    simulation = simulate(graph, assemble("test", graph, [1, 0], [0, 0]), profile_of((2, 0), (3, 0)), Latency(1.0))
    assert simulation.intervals == ((4.0, 6.0), (0.0, 3.0))


def test_operators_that_fit_side_by_side_do_not_slow_each_other() -> None:
    assert run_apart(profile_of((10, 0.5), (4, 0.5))) == ((0.0, 10.0), (0.0, 4.0))


def test_operators_that_fill_the_device_share_it() -> None:
    # Half speed each until the short one has done its 4 µs at 8; the other has 6 left at full speed.
    assert run_apart(profile_of((10, 1.0), (4, 1.0))) == ((0.0, 14.0), (0.0, 8.0))


def test_everyone_slows_down_by_the_same_factor() -> None:
    # 0.75 + 0.75: two thirds of full speed.
    first, second = run_apart(profile_of((10, 0.75), (10, 0.75)))
    assert first == second == pytest.approx([0.0, 15.0])


@pytest.mark.parametrize("count", [0, 1])
def test_smallest_graphs(count: int) -> None:
    graph = OperatorGraph.from_edges(count, [])
    schedule = assemble("test", graph, range(count), [0] * count)
    assert simulate(graph, schedule, Profile.uniform(count), Latency()).makespan_us == count


@pytest.mark.parametrize(
    "steps", [(Step(0, 0, (1,)), Step(1, 0)), (Step(0, 0), Step(1, 0, (5,))), (Step(0, 0),)], ids=str
)
def test_a_schedule_that_cannot_run_is_refused(steps: tuple[Step, ...]) -> None:
    with pytest.raises(ScheduleError, match="never start"):
        simulate(OperatorGraph.from_edges(2, []), Schedule("stuck", steps), Profile.uniform(2), Latency())


def simulate_exactly(schedule: Schedule, profile: Profile, hop: Fraction) -> dict[int, tuple[Fraction, Fraction]]:
    """Fractions instead of floats, and every operator looked at in every event."""
    before: dict[int, set[int]] = {}
    previous: dict[int, int] = {}
    for step in schedule.steps:
        before[step.operator] = {*step.waits, *([previous[step.stream]] if step.stream in previous else [])}
        previous[step.stream] = step.operator
    left = {operator: Fraction(profile.durations[operator]) for operator in before}
    start: dict[int, Fraction] = {}
    end: dict[int, Fraction] = {}
    now = Fraction(0)
    while len(end) < len(before):
        begins = {
            operator: max([Fraction(0), *(end[source] + hop for source in sources)])
            for operator, sources in before.items()
            if operator not in start and sources <= end.keys()
        }
        running = [operator for operator in start if operator not in end]
        room = sum(Fraction(profile.operators[operator].footprint) for operator in running)
        slowdown = max(Fraction(1), room)
        now_next = min([*begins.values(), *(now + left[operator] * slowdown for operator in running)])
        for operator in running:
            left[operator] -= (now_next - now) / slowdown
            if left[operator] == 0:
                end[operator] = now_next
        now = now_next
        start.update((operator, now) for operator, at in begins.items() if at == now)
    return {operator: (start[operator], end[operator]) for operator in before}


@settings(deadline=None, max_examples=60)
@given(dags(largest=40), randoms, st.sampled_from([*POLICIES]), st.sampled_from([0.0, 1.2]))
def test_agrees_with_an_exact_simulation(graph: OperatorGraph, random: Random, policy: str, hop: float) -> None:
    profile = random_profile(graph, random)
    schedule = fold(graph, make_schedule(graph, profile, policy), 8)
    exact = simulate_exactly(schedule, profile, Fraction(hop))
    simulation = simulate(graph, schedule, profile, Latency(hop))
    for operator, interval in enumerate(simulation.intervals):
        assert interval == pytest.approx([float(time) for time in exact[operator]], rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(dags(), randoms, st.sampled_from([*POLICIES]))
def test_no_schedule_beats_the_longest_path_or_the_work_or_its_own_order(
    graph: OperatorGraph, random: Random, policy: str
) -> None:
    profile = random_profile(graph, random)
    schedule = make_schedule(graph, profile, policy)
    simulation = simulate(graph, schedule, profile, Latency(1.2))
    work = sum(operator.duration_us * operator.footprint for operator in profile.operators)
    path = graph.longest_path([duration + 1.2 for duration in profile.durations]) - 1.2
    slack = 1e-6
    assert simulation.makespan_us >= max(work, path) - slack
    past = ordered_pairs(schedule)
    for step in schedule.steps:
        start, end = simulation.intervals[step.operator]
        assert end - start >= profile.durations[step.operator] - slack
        for source in graph.predecessors[step.operator]:
            assert past[step.operator] >> source & 1
            assert start >= simulation.intervals[source][1] + 1.2 - slack
    assert simulation == simulate(graph, schedule, profile, Latency(1.2))


def test_sequential_is_the_sum_of_its_parts() -> None:
    graph = OperatorGraph.from_edges(50, [])
    profile = random_profile(graph, Random(0))
    simulation = simulate(graph, make_schedule(graph, profile, "sequential"), profile, Latency(1.2))
    assert simulation.makespan_us == pytest.approx(sum(profile.durations) + 49 * 1.2)
