"""The simulator against schedules computed by hand, against a slower simulation with exact numbers, and its bounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.policies import make_schedule
from opara_server.engine.profile import Kernel, OperatorProfile, Profile, Roofline
from opara_server.engine.random_schedules import random_schedule
from opara_server.engine.schedule import Schedule, ScheduleError, Step, assemble, fold
from opara_server.engine.simulate import IDEAL, Latency, simulate
from tests.engine.dags import QUICK_POLICIES, dags, ordered_pairs, randoms

BYTES_PER_US = 1000
latencies = st.sampled_from([IDEAL, Latency(), Latency(1.25, 0.0, 0.0, 0.0, 0.0), Latency(0.25, 2.0, 0.5, 1.0, 0.5, 1)])


def operator(duration: float, room: float = 1.0, kernels: int = 1, bandwidth: float = 0.0) -> OperatorProfile:
    """Of ``kernels`` equally long ones; 0: none that is known of."""
    traffic = round(bandwidth * duration * BYTES_PER_US)
    equal = tuple(Kernel("k", duration / kernels, (1, 1, 1), (32, 1, 1), 0, 0, 0.0) for _ in range(kernels))
    return OperatorProfile(duration, 0, traffic, footprint=room, kernels=equal)


def profile_of(*operators: OperatorProfile) -> Profile:
    return Profile(operators, Roofline(1.0, BYTES_PER_US * 1e6))


def some_profile(graph: OperatorGraph, random: Random) -> Profile:
    """Some operators take no time, no room, or no bandwidth; some have several kernels, or none that is known of."""
    return profile_of(
        *(
            operator(
                random.choice([0.0, 1.0, random.uniform(0.5, 40.0)]),
                random.choice([0.0, 1.0, random.random()]),
                random.choice([0, 1, 1, 3]),
                random.choice([0.0, 1.0, random.random()]),
            )
            for _ in graph.operators
        )
    )


def run(
    edges: Sequence[tuple[int, int]], streams: Sequence[int], latency: Latency, *operators: OperatorProfile
) -> tuple[tuple[float, float], ...]:
    """The intervals of operators launched in order on ``streams``."""
    graph = OperatorGraph.from_edges(len(operators), edges)
    schedule = assemble("test", graph, range(len(operators)), streams)
    return simulate(graph, schedule, profile_of(*operators), latency).intervals


def test_a_chain_pays_a_dependency_between_operators() -> None:
    latency = replace(IDEAL, dependency_us=1.5)
    intervals = run([(0, 1), (1, 2)], [0, 0, 0], latency, operator(5), operator(3), operator(2))
    assert intervals == ((0.0, 5.0), (6.5, 9.5), (11.0, 13.0))


def test_an_operator_of_several_kernels_pays_a_dependency_between_them() -> None:
    latency = replace(IDEAL, dependency_us=1.5)
    assert run([], [0], latency, operator(6, kernels=3)) == ((0.0, 9.0),)


def test_a_fork_and_a_join_across_streams() -> None:
    latency = replace(IDEAL, dependency_us=1.0)
    four = operator(2), operator(4, 0.25), operator(6, 0.25), operator(1)
    intervals = run([(0, 1), (0, 2), (1, 3), (2, 3)], [0, 0, 1, 0], latency, *four)
    assert intervals == ((0.0, 2.0), (3.0, 7.0), (3.0, 9.0), (10.0, 11.0))


def test_another_stream_takes_longer() -> None:
    latency = replace(IDEAL, dependency_us=1.0, wait_us=2.0)
    intervals = run([(0, 1), (0, 2)], [0, 0, 1], latency, operator(5), operator(1, 0.1), operator(1, 0.1))
    assert intervals == ((0.0, 5.0), (6.0, 7.0), (8.0, 9.0))


def test_one_that_follows_several_starts_later_whichever_of_them_is_last() -> None:
    latency = replace(IDEAL, join_us=0.5)
    three = operator(8, 0.1), operator(2, 0.1), operator(1, 0.1)
    assert run([(0, 2), (1, 2)], [0, 1, 0], latency, *three)[2] == (8.5, 9.5)
    assert run([(0, 2), (1, 2)], [0, 1, 1], latency, *three)[2] == (8.5, 9.5)
    assert run([(0, 2), (1, 2)], [0, 0, 0], latency, *three)[2] == (10.0, 11.0)


@pytest.mark.parametrize(("reach", "kernels", "start"), [(1, 1, 7.0), (0, 1, 7.5), (1, 2, 7.5), (2, 2, 7.0)])
def test_an_edge_that_another_one_implies_within_reach_costs_nothing(reach: int, kernels: int, start: float) -> None:
    """A chain of three: the last is on the first's stream and waits for the one between them."""
    latency = replace(IDEAL, join_us=0.5, reach=reach)
    three = operator(5, 0.1), operator(2, 0.1, kernels), operator(1, 0.1)
    assert run([(0, 1), (1, 2)], [0, 1, 0], latency, *three)[2] == (start, start + 1)


def test_the_way_that_implies_an_edge_counts_in_kernels_and_has_no_dropped_edge_in_it() -> None:
    latency = replace(IDEAL, join_us=1.0, reach=2)
    four = [operator(1, 0.1)] * 4
    chain = [(0, 1), (1, 2), (2, 3)]
    assert run(chain, [0, 1, 2, 0], latency, *four)[3] == (3.0, 4.0)
    assert run(chain, [0, 1, 2, 0], replace(latency, reach=1), *four)[3] == (4.0, 5.0)
    # 2 follows 1 alone, which implies 0; so 3, which waits for 2, follows 0 by way of 2 and 1.
    assert run([*chain, (0, 2)], [0, 1, 0, 2], latency, *four)[3] == (3.0, 4.0)


def test_a_stream_is_a_queue_even_without_an_edge() -> None:
    graph = OperatorGraph.from_edges(2, [])
    schedule = assemble("test", graph, [1, 0], [0, 0])
    simulation = simulate(graph, schedule, profile_of(operator(2), operator(3)), replace(IDEAL, dependency_us=1.0))
    assert simulation.intervals == ((4.0, 6.0), (0.0, 3.0))
    assert simulation.makespan_us == 6.0


def test_operators_that_fit_side_by_side_run_together_and_others_share() -> None:
    assert run([], [0, 1], IDEAL, operator(10, 0.5), operator(4, 0.5)) == ((0.0, 10.0), (0.0, 4.0))
    assert run([], [0, 1], IDEAL, operator(10, 1.0), operator(4, 1.0)) == ((0.0, 14.0), (0.0, 8.0))


def test_two_that_need_all_the_bandwidth_share_it() -> None:
    assert run([], [0, 1], IDEAL, *[operator(10, 0.1, bandwidth=1.0)] * 2) == ((0.0, 20.0), (0.0, 20.0))
    assert run([], [0, 1], IDEAL, *[operator(10, 0.1, bandwidth=0.5)] * 2) == ((0.0, 10.0), (0.0, 10.0))


def test_company_slows_down_even_those_that_fit_side_by_side() -> None:
    latency = replace(IDEAL, company=0.5)
    # The first has done 4 of its 10 µs of work when it is alone again.
    assert run([], [0, 1], latency, operator(10, 0.1), operator(4, 0.1)) == ((0.0, 12.0), (0.0, 6.0))
    assert run([], [0, 1], latency, *[operator(10, 1.0)] * 2) == ((0.0, 20.0), (0.0, 20.0)), "room is scarcer"
    assert run([], [0, 0], latency, *[operator(10, 1.0)] * 2) == ((0.0, 10.0), (10.0, 20.0))


def test_a_wide_fan_out_starts_no_faster_than_kernels_are_issued() -> None:
    intervals = run([], range(5), replace(IDEAL, issue_us=0.5), *[operator(1, 0.01)] * 5)
    assert [start for start, _ in intervals] == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_kernels_of_one_operator_are_taken_up_one_by_one_with_others_between_them() -> None:
    latency = replace(IDEAL, issue_us=0.5)
    assert run([], [0, 1], latency, operator(2, 0.1, kernels=2), operator(1, 0.1)) == ((0.0, 2.0), (0.5, 1.5))
    # Its second kernel, ready at 0.25, goes after those that were ready at 0.
    late = run([], [0, 1, 2], latency, operator(0.5, 0.1, kernels=2), operator(1, 0.1), operator(1, 0.1))
    assert late == ((0.0, 1.75), (0.5, 1.5), (1.0, 2.0))


def test_the_first_to_be_ready_is_issued_first_and_of_those_ready_at_once_the_first_launched() -> None:
    graph = OperatorGraph.from_edges(4, [(0, 3)])
    schedule = assemble("test", graph, [0, 3, 2, 1], [0, 1, 2, 3])
    profile = profile_of(*[operator(1, 0.01)] * 4)
    starts = [start for start, _ in simulate(graph, schedule, profile, replace(IDEAL, issue_us=3.0)).intervals]
    assert starts == [0.0, 6.0, 3.0, 9.0]


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


def equal_parts(needs: dict[int, Fraction]) -> dict[int, Fraction]:
    """Max-min fairness by giving: whoever wants no more than an equal part of what is left gets what it wants."""
    wanted = dict(needs)
    rest, parts = Fraction(1), {}
    while wanted:
        equal = rest / len(wanted)
        content = [o for o, need in wanted.items() if need <= equal]
        for o in content or list(wanted):
            parts[o] = min(wanted.pop(o), equal)
            rest -= parts[o]
    return parts


def exact_speeds(profile: Profile, running: Iterable[int]) -> dict[int, Fraction]:
    rooms = {o: Fraction(profile.operators[o].footprint) for o in running}
    bandwidths = {o: Fraction(profile.bandwidth[o]) for o in running}
    speeds = dict.fromkeys(rooms, Fraction(1))
    for needs in rooms, bandwidths:
        for o, part in equal_parts(needs).items():
            speeds[o] = min(speeds[o], part / needs[o] if needs[o] else Fraction(1))
    return speeds


def exact_edges(schedule: Schedule, profile: Profile, reach: int) -> dict[int, set[int]]:
    """Per operator those that it follows. ``way[o][e]``: in how few kernels o follows e, its own included."""
    edges: dict[int, set[int]] = {}
    way: dict[int, dict[int, int]] = {}
    previous: dict[int, int] = {}
    for step in schedule.steps:
        edges[step.operator] = set(step.waits)
        own = previous.get(step.stream)
        if own is not None and all(way[source].get(own, reach + 1) > reach for source in step.waits):
            edges[step.operator].add(own)
        kernels = len(profile.kernel_durations[step.operator])
        found = way[step.operator] = dict.fromkeys(edges[step.operator], kernels)
        for source in edges[step.operator]:
            for earlier, distance in way[source].items():
                found[earlier] = min(found.get(earlier, distance + kernels), distance + kernels)
        previous[step.stream] = step.operator
    return edges


def simulate_exactly(schedule: Schedule, profile: Profile, latency: Latency) -> dict[int, tuple[Fraction, Fraction]]:
    """Fractions instead of floats, and every kernel looked at in every event."""
    hop, wait, join, issue, company = (
        Fraction(getattr(latency, name)) for name in ("dependency_us", "wait_us", "join_us", "issue_us", "company")
    )
    stream = {step.operator: step.stream for step in schedule.steps}
    before = {
        o: {e: hop + (join if len(sources) > 1 else 0) + (wait if stream[e] != stream[o] else 0) for e in sources}
        for o, sources in exact_edges(schedule, profile, latency.reach).items()
    }
    todo = {o: [Fraction(duration) for duration in profile.kernel_durations[o]] for o in schedule.order}
    ready = {o: Fraction(0) for o, sources in before.items() if not sources}
    left: dict[int, Fraction] = {}
    start: dict[int, Fraction] = {}
    end: dict[int, Fraction] = {}
    now = free = Fraction(0)
    while len(end) < len(before):
        most = 1 / (1 + company) if len(left) > 1 else Fraction(1)
        speeds = {o: min(most, speed) for o, speed in exact_speeds(profile, left).items()}
        until = min([*(max(at, free) for at in ready.values()), *(now + left[o] / speeds[o] for o in left)])
        for o in left:
            left[o] -= (until - now) * speeds[o]
        now = until
        over = [o for o, rest in left.items() if rest == 0]
        for o in over:
            del left[o], todo[o][0]
            if todo[o]:
                ready[o] = now + hop
            else:
                end[o] = now
        for o, sources in before.items():
            if o not in start and o not in ready and sources.keys() <= end.keys():
                ready[o] = max(end[source] + gap for source, gap in sources.items())
        able = [o for o, at in ready.items() if max(at, free) <= now]
        if able and not over:
            o = min(able, key=lambda o: (ready[o], schedule.order.index(o)))
            del ready[o]
            free = now + issue
            start.setdefault(o, now)
            left[o] = todo[o][0]
    return {o: (start[o], end[o]) for o in before}


def assert_exact(schedule: Schedule, graph: OperatorGraph, profile: Profile, latency: Latency) -> None:
    exact = simulate_exactly(schedule, profile, latency)
    for number, interval in enumerate(simulate(graph, schedule, profile, latency).intervals):
        assert interval == pytest.approx([float(time) for time in exact[number]], rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(dags(largest=30), randoms, latencies)
def test_shares_as_an_exact_simulation_does(graph: OperatorGraph, random: Random, latency: Latency) -> None:
    """Without the latencies that depend on who comes first: rounding decides ties."""
    unordered = replace(latency, issue_us=0.0)
    assert_exact(random_schedule(graph, random, 8), graph, some_profile(graph, random), unordered)


@settings(deadline=None, max_examples=60)
@given(
    dags(largest=30),
    randoms,
    st.sampled_from([Latency(0.25, 2.0, 0.5, 1.0, 1.0, 2), Latency(0.0, 0.5, 0.0, 0.25, 0.0, 0)]),
)
def test_takes_kernels_up_as_an_exact_simulation_does(graph: OperatorGraph, random: Random, latency: Latency) -> None:
    """In times that a float holds exactly, and with room for all."""
    eighths = [
        operator(random.randrange(1, 100) / 8, random.choice([0.0, 1 / 64]), random.choice([0, 1, 1, 2, 4]))
        for _ in graph.operators
    ]
    assert_exact(random_schedule(graph, random, 8), graph, profile_of(*eighths), latency)


@settings(deadline=None, max_examples=60)
@given(dags(largest=200), randoms, st.sampled_from([*QUICK_POLICIES, "random"]), latencies)
def test_bounds(graph: OperatorGraph, random: Random, policy: str, latency: Latency) -> None:
    """No schedule beats the longest path, the work, or its own order; none is slower than one thing after the other."""
    profile = some_profile(graph, random)
    drawn = random_schedule(graph, random) if policy == "random" else make_schedule(graph, profile, policy)
    schedule = fold(graph, drawn, 32)
    simulation = simulate(graph, schedule, profile, latency)
    slack = 1e-6
    kernels = [len(durations) for durations in profile.kernel_durations]
    room = sum(d * seen.footprint for d, seen in zip(profile.durations, profile.operators, strict=True))
    bandwidth = sum(d * share for d, share in zip(profile.durations, profile.bandwidth, strict=True))
    alone = [d + (k - 1) * latency.dependency_us for d, k in zip(profile.durations, kernels, strict=True)]
    path = graph.longest_path([a + latency.dependency_us for a in alone]) - latency.dependency_us
    issue = (sum(kernels) - 1) * latency.issue_us
    assert simulation.makespan_us >= max(room, bandwidth, path, issue) - slack
    between = sum(kernels) * (latency.dependency_us + latency.issue_us) + len(graph) * (
        latency.wait_us + latency.join_us
    )
    assert simulation.makespan_us <= (1 + latency.company) * sum(profile.durations) + between + slack
    past = ordered_pairs(schedule)
    for number, (start, end) in enumerate(simulation.intervals):
        assert end - start >= alone[number] - slack
        for source in graph.predecessors[number]:
            assert past[number] >> source & 1
            assert start >= simulation.intervals[source][1] + latency.dependency_us - slack


def interleaved(schedule: Schedule, random: Random) -> Schedule:
    """The same streams and waits, launched in another order."""
    queues: dict[int, list[Step]] = {}
    for step in reversed(schedule.steps):
        queues.setdefault(step.stream, []).append(step)
    steps: list[Step] = []
    launched: set[int] = set()
    while len(steps) < len(schedule.steps):
        able = [queue for queue in queues.values() if queue and launched.issuperset(queue[-1].waits)]
        steps.append(random.choice(able).pop())
        launched.add(steps[-1].operator)
    return replace(schedule, steps=tuple(steps))


@settings(deadline=None, max_examples=40)
@given(dags(largest=80), randoms)
def test_only_streams_and_waits_count_where_kernels_are_issued_at_once(graph: OperatorGraph, random: Random) -> None:
    profile = some_profile(graph, random)
    schedule = random_schedule(graph, random)
    latency = replace(Latency(), issue_us=0.0)
    first = simulate(graph, schedule, profile, latency)
    again = simulate(graph, interleaved(schedule, random), profile, latency)
    assert again.makespan_us == pytest.approx(first.makespan_us)
    assert first == simulate(graph, schedule, profile, latency)


def test_sequential_is_the_sum_of_its_parts() -> None:
    graph = OperatorGraph.from_edges(50, [])
    profile = some_profile(graph, Random(0))
    latency = replace(Latency(), issue_us=0.0)
    simulation = simulate(graph, make_schedule(graph, profile, "sequential"), profile, latency)
    hops = sum(len(durations) for durations in profile.kernel_durations) - 1
    assert simulation.makespan_us == pytest.approx(sum(profile.durations) + hops * latency.dependency_us)
