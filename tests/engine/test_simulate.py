"""The simulator against schedules computed by hand, against a slower simulation with exact numbers, and its bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.policies import POLICIES, make_schedule
from opara_server.engine.profile import Kernel, OperatorProfile, Profile, Roofline
from opara_server.engine.random_schedules import random_schedule
from opara_server.engine.schedule import Schedule, ScheduleError, Step, assemble, fold
from opara_server.engine.simulate import IDEAL, Latency, simulate
from tests.engine.dags import dags, ordered_pairs, randoms

KERNEL = Kernel("k", 0.0, (1, 1, 1), (32, 1, 1), 0, 0, 0.0)
BYTES_PER_US = 1000
latencies = st.sampled_from([IDEAL, Latency(), Latency(1.2, 0.0, 0.0, 0.0, 0.0), Latency(0.25, 2.0, 0.5, 1.0, 1.5)])


def operator(duration: float, room: float = 1.0, kernels: int = 1, bandwidth: float = 0.0) -> OperatorProfile:
    traffic = round(bandwidth * duration * BYTES_PER_US)
    return OperatorProfile(duration, 0, traffic, footprint=room, kernels=(KERNEL,) * kernels)


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


def test_another_stream_takes_longer_and_each_wait_takes_its_time() -> None:
    latency = replace(IDEAL, dependency_us=1.0, wait_us=2.0, event_us=0.25)
    intervals = run([(0, 2), (1, 2)], [0, 1, 2], latency, operator(5, 0.1), operator(6, 0.1), operator(1))
    assert intervals[2] == (6.0 + 1.0 + 2.0 + 2 * 0.25, 10.5)


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


def test_company_does_not_lengthen_the_ramps() -> None:
    # 1 µs of ramps each, then 9 µs of work each at half speed.
    intervals = run([], [0, 1], replace(IDEAL, ramp_us=0.5), *[operator(10, 1.0, kernels=2)] * 2)
    assert intervals == ((0.0, 19.0), (0.0, 19.0))


def test_a_wide_fan_out_starts_no_faster_than_kernels_are_issued() -> None:
    latency = replace(IDEAL, issue_us=0.5)
    intervals = run([], range(5), latency, *[operator(1, 0.01)] * 2, operator(1, 0.01, 4), *[operator(1, 0.01)] * 2)
    assert [start for start, _ in intervals] == [0.0, 0.5, 1.0, 3.0, 3.5]


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


def exact_speeds(running: dict[int, OperatorProfile]) -> dict[int, Fraction]:
    """Max-min fairness by giving: whoever wants no more than an equal part of the rest gets what it wants."""
    crowd = max(Fraction(1), sum((Fraction(seen.footprint) for seen in running.values()), Fraction(0)))
    full = {o: exact_bandwidth(seen) for o, seen in running.items()}
    wanted = {o: share / crowd for o, share in full.items()}
    rest, given = Fraction(1), {}
    while wanted:
        part = rest / len(wanted)
        content = [o for o, share in wanted.items() if share <= part]
        for o in content or list(wanted):
            given[o] = min(wanted.pop(o), part)
            rest -= given[o]
    return {o: given[o] / full[o] if full[o] else 1 / crowd for o in running}


def exact_bandwidth(seen: OperatorProfile) -> Fraction:
    return min(Fraction(1), seen.bytes / (Fraction(seen.duration_us) * BYTES_PER_US)) if seen.bytes else Fraction(0)


def simulate_exactly(schedule: Schedule, profile: Profile, latency: Latency) -> dict[int, tuple[Fraction, Fraction]]:
    """Fractions instead of floats, and every operator looked at in every event."""
    hop, wait, event, issue, ramp = (
        Fraction(getattr(latency, name)) for name in ("dependency_us", "wait_us", "event_us", "issue_us", "ramp_us")
    )
    before: dict[int, dict[int, Fraction]] = {}
    previous: dict[int, int] = {}
    for step in schedule.steps:
        before[step.operator] = dict.fromkeys(step.waits, hop + wait)
        if step.stream in previous:
            before[step.operator][previous[step.stream]] = hop
        previous[step.stream] = step.operator
    waits = {step.operator: len(step.waits) for step in schedule.steps}
    place = {o: number for number, o in enumerate(schedule.order)}
    start: dict[int, Fraction] = {}
    begin: dict[int, Fraction] = {}  # of the work that is shared
    left: dict[int, Fraction] = {}
    end: dict[int, Fraction] = {}
    now = issued = Fraction(0)
    while len(end) < len(before):
        ready = {
            o: max((end[source] + gap for source, gap in sources.items()), default=Fraction(0)) + event * waits[o]
            for o, sources in before.items()
            if o not in start and sources.keys() <= end.keys()
        }
        speeds = exact_speeds({o: profile.operators[o] for o in left})
        coming = {o: at for o, at in begin.items() if o not in left and o not in end}
        now_next = min([*ready.values(), *coming.values(), *(now + left[o] / speeds[o] for o in left)])
        for o in list(left):
            left[o] -= (now_next - now) * speeds[o]
        now = now_next
        for o in [o for o, rest in left.items() if rest == 0]:
            del left[o]
            end[o] = now
        for o in sorted((o for o, at in ready.items() if at == now), key=place.__getitem__):
            seen = profile.operators[o]
            kernels = len(seen.kernels) or 1
            ramps = min(Fraction(seen.duration_us), kernels * ramp)
            start[o] = max(now, issued)
            issued = start[o] + kernels * issue
            begin[o] = start[o] + ramps + (kernels - 1) * hop
        for o in [o for o, at in begin.items() if at == now and o not in left and o not in end]:
            seen = profile.operators[o]
            left[o] = Fraction(seen.duration_us) - min(Fraction(seen.duration_us), (len(seen.kernels) or 1) * ramp)
    return {o: (start[o], end[o]) for o in before}


@settings(deadline=None, max_examples=60)
@given(
    dags(largest=30), randoms, st.sampled_from([IDEAL, Latency(0.25, 2.0, 0.5, 1.0, 1.5), Latency(1.25, 0, 0, 0, 0)])
)
def test_agrees_with_an_exact_simulation(graph: OperatorGraph, random: Random, latency: Latency) -> None:
    profile = some_profile(graph, random)
    schedule = random_schedule(graph, random, 8)
    exact = simulate_exactly(schedule, profile, latency)
    simulation = simulate(graph, schedule, profile, latency)
    for number, interval in enumerate(simulation.intervals):
        assert interval == pytest.approx([float(time) for time in exact[number]], rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(dags(largest=200), randoms, st.sampled_from([*POLICIES, "random"]), latencies)
def test_bounds(graph: OperatorGraph, random: Random, policy: str, latency: Latency) -> None:
    """No schedule beats the longest path, the work, or its own order; none is slower than one thing after the other."""
    profile = some_profile(graph, random)
    drawn = random_schedule(graph, random) if policy == "random" else make_schedule(graph, profile, policy)
    schedule = fold(graph, drawn, 32)
    simulation = simulate(graph, schedule, profile, latency)
    slack = 1e-6
    kernels = [len(seen.kernels) or 1 for seen in profile.operators]
    alone = [
        seen.duration_us + (count - 1) * latency.dependency_us
        for seen, count in zip(profile.operators, kernels, strict=True)
    ]
    work = [
        max(0.0, seen.duration_us - count * latency.ramp_us)
        for seen, count in zip(profile.operators, kernels, strict=True)
    ]
    room = sum(w * seen.footprint for w, seen in zip(work, profile.operators, strict=True))
    bandwidth = sum(w * share for w, share in zip(work, profile.bandwidth, strict=True))
    path = graph.longest_path([a + latency.dependency_us for a in alone]) - latency.dependency_us
    issue = (sum(kernels) - max(kernels, default=0)) * latency.issue_us
    assert simulation.makespan_us >= max(room, bandwidth, path, issue) - slack
    between = len(graph) * (latency.dependency_us + latency.wait_us) + schedule.synchronisations * latency.event_us
    assert simulation.makespan_us <= sum(alone) + between + sum(kernels) * latency.issue_us + slack
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
    kernels = sum(len(seen.kernels) or 1 for seen in profile.operators)
    hops = (kernels - 1) * latency.dependency_us
    assert simulation.makespan_us == pytest.approx(sum(profile.durations) + hops)
