"""The policies: every schedule right, and each what its paper says it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.policies import POLICIES, make_schedule, prioritise, quick_policies, search
from opara_server.engine.policies.critical_path import critical_path, place
from opara_server.engine.policies.heft import heft
from opara_server.engine.policies.heft import place as heft_place
from opara_server.engine.policies.ios import ios
from opara_server.engine.policies.nimble import minimum_equivalent
from opara_server.engine.policies.opara import allocate_streams, launch_order
from opara_server.engine.policies.packed import packed
from opara_server.engine.policies.wavefront import levels
from opara_server.engine.profile import OperatorProfile, Profile, Roofline
from opara_server.engine.schedule import Schedule, check, compact, fold, happens_before
from tests.engine.dags import (
    QUICK_POLICIES,
    dags,
    googlenet,
    ordered_pairs,
    programs,
    random_profile,
    randoms,
    true_order,
)

SAVED_GOOGLENET = Path(__file__).parents[2] / "bench" / "data" / "googlenet.json"
SLOW = ["ios", "ios:3", "search", "search:2", "search(nimble)"]
FAST = [*QUICK_POLICIES, *(f"{name}:{count}" for name in ("critical_path", "heft", "packed") for count in (1, 4))]
ALL = [*FAST, *SLOW]


@settings(deadline=None, max_examples=150)
@given(st.one_of(dags(), programs()), randoms, st.sampled_from(FAST))
def test_every_schedule_is_right_as_it_is_compacted_folded_and_prioritised(
    graph: OperatorGraph, random: Random, policy: str
) -> None:
    assert_right(graph, random, policy)


@settings(deadline=None, max_examples=30)
@given(st.one_of(dags(largest=40), programs(largest=40)), randoms, st.sampled_from(SLOW))
def test_so_is_every_schedule_of_a_slow_policy(graph: OperatorGraph, random: Random, policy: str) -> None:
    assert_right(graph, random, policy)


def assert_right(graph: OperatorGraph, random: Random, policy: str) -> None:
    profile = random_profile(graph, random)
    schedule = make_schedule(graph, profile, policy)
    if policy.startswith("search"):
        assert make_schedule(graph, profile, schedule.policy) == schedule, "it bears where it started"
    else:
        assert schedule.policy == policy
    for variant in (schedule, compact(graph, schedule), fold(graph, schedule, 3)):
        check(graph, variant)
        check(graph, prioritise(graph, profile, variant))


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("count", [0, 1])
def test_smallest_graphs(policy: str, count: int) -> None:
    graph, profile = OperatorGraph.from_edges(count, []), Profile.uniform(count)
    schedule = prioritise(graph, profile, make_schedule(graph, profile, policy))
    check(graph, schedule)
    assert (schedule.streams, schedule.synchronisations, schedule.urgent) == (count, 0, frozenset(range(count)))


@pytest.mark.parametrize(
    "policy",
    [
        "",
        "opera",
        "opara:2",
        "critical_path:",
        "critical_path:0",
        "critical_path:-1",
        "heft:two",
        "packed:04",
        "search(search)",
        "search(opera)",
        "search()",
    ],
)
def test_unknown_policies_are_refused_with_the_known_names(policy: str) -> None:
    with pytest.raises(ValueError, match="sequential, opara, nimble, wavefront, critical_path"):
        make_schedule(OperatorGraph.from_edges(1, []), Profile.uniform(1), policy)


def test_a_profile_of_another_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="profile of 2 operators for a graph of 1"):
        make_schedule(OperatorGraph.from_edges(1, []), Profile.uniform(2), "opara")


def test_sequential_is_program_order_on_one_stream() -> None:
    graph = googlenet()
    schedule = make_schedule(graph, Profile.uniform(len(graph)), "sequential")
    assert schedule.order == tuple(range(len(graph)))
    assert (schedule.streams, schedule.synchronisations) == (1, 0)


def test_algorithm_1_on_the_example_of_the_papers_appendix() -> None:
    """The text fixes who continues and who opens; these are the edges that make it so (operators 1 to 13):
    1 forks to 2, 3, 4; a single operator follows each; 8 joins; 6 and 7 fork; 13 joins."""
    successors = {1: [2, 3, 4], 2: [5], 3: [6], 4: [7], 5: [8], 6: [8, 9, 10], 7: [8, 11, 12]}
    successors |= {last: [13] for last in (8, 9, 10, 11, 12)}
    edges = [(source - 1, target - 1) for source in successors for target in successors[source]]
    stream = allocate_streams(OperatorGraph.from_edges(13, edges))
    stream_of = dict(enumerate(stream, start=1))
    opens = [operator for operator in stream_of if stream_of[operator] not in stream[: operator - 1]]
    assert opens == [1, 3, 4, 10, 12]
    continues = {2: 1, 5: 2, 6: 3, 7: 4, 8: 5, 9: 6, 11: 7, 13: 8}
    assert {operator: stream_of[operator] for operator in continues} == {
        operator: stream_of[source] for operator, source in continues.items()
    }


def test_algorithm_1_joins_the_first_predecessor_not_yet_handed_on() -> None:
    graph = OperatorGraph.from_edges(5, [(0, 2), (1, 3), (0, 3), (0, 4), (1, 4)])
    # 2 takes 0's stream, 3 takes 1's (named first), and 4 finds both handed on.
    assert allocate_streams(graph) == [0, 1, 0, 1, 2]


@settings(deadline=None, max_examples=100)
@given(dags())
def test_algorithm_1_gives_paths(graph: OperatorGraph) -> None:
    last: dict[int, int] = {}
    for operator, stream in enumerate(allocate_streams(graph)):
        assert stream not in last or last[stream] in graph.predecessors[operator]
        last[stream] = operator


@settings(deadline=None, max_examples=100)
@given(dags(largest=120), randoms)
def test_algorithm_2_by_its_definition(graph: OperatorGraph, random: Random) -> None:
    profile = random_profile(graph, random)
    done: set[int] = set()
    previous = None
    for operator in launch_order(graph, profile):
        ready = [o for o in range(len(graph)) if o not in done and done.issuperset(graph.predecessors[o])]
        assert operator in ready
        other = [
            o for o in ready if previous is not None and profile.compute_bound(o) != profile.compute_bound(previous)
        ]
        assert not other or operator in other, "it is the other class's turn"
        same = [o for o in ready if profile.compute_bound(o) == profile.compute_bound(operator)]
        assert operator == min(same, key=lambda o: (profile.operators[o].demand, o))
        done.add(operator)
        previous = operator
    assert len(done) == len(graph)


def test_algorithm_2_takes_turns_and_small_demands_first() -> None:
    compute, memory = 100, 1
    flops = [compute, compute, memory, memory, compute]
    demand = [0.5, 0.1, 0.3, 0.3, 0.2]
    operators = tuple(OperatorProfile(1.0, f, 10, d) for f, d in zip(flops, demand, strict=True))
    order = launch_order(OperatorGraph.from_edges(5, []), Profile(operators, Roofline(1.0, 1.0)))
    assert order == [1, 2, 4, 3, 0]


@settings(deadline=None, max_examples=60)
@given(dags())
def test_nimble_adds_no_order_at_all(graph: OperatorGraph) -> None:
    schedule = make_schedule(graph, Profile.uniform(len(graph)), "nimble")
    assert ordered_pairs(schedule) == true_order(graph)
    assert graph.width <= schedule.streams
    assert compact(graph, schedule).streams == schedule.streams, "the second matching has been done already"


@settings(deadline=None, max_examples=60)
@given(dags(largest=150))
def test_minimum_equivalent_graph_has_the_same_order_and_no_edge_to_spare(graph: OperatorGraph) -> None:
    reduced = minimum_equivalent(graph)
    edges = [(source, target) for source, targets in enumerate(reduced) for target in targets]
    assert true_order(OperatorGraph.from_edges(len(graph), edges)) == true_order(graph)
    for source, targets in enumerate(reduced):
        for target in targets:
            others = [t for t in graph.successors[source] if t != target]
            assert not any(graph.descendants[other] >> target & 1 for other in others)


@settings(deadline=None, max_examples=60)
@given(dags())
def test_wavefront_has_a_barrier_between_waves(graph: OperatorGraph) -> None:
    waves = levels(graph)
    past = ordered_pairs(make_schedule(graph, Profile.uniform(len(graph)), "wavefront"))
    earlier = 0
    for wave in waves:
        assert all(past[operator] == earlier for operator in wave), "all of the waves before, none of its own"
        earlier |= sum(1 << operator for operator in wave)


def test_wavefront_waits_for_the_wave_before_only() -> None:
    graph = OperatorGraph.from_edges(6, [(0, 1), (0, 2), (0, 3), (1, 4), (3, 5)])
    schedule = make_schedule(graph, Profile.uniform(6), "wavefront")
    waits = {step.operator: set(step.waits) for step in schedule.steps}
    assert waits == {0: set(), 1: set(), 2: {0}, 3: {0}, 4: {2, 3}, 5: {1, 3}}


@settings(deadline=None, max_examples=60)
@given(dags(), randoms, st.integers(1, 40), st.sampled_from([critical_path, packed]))
def test_list_scheduling_uses_no_more_streams_than_allowed_or_useful(
    graph: OperatorGraph, random: Random, limit: int, policy: Callable[[OperatorGraph, Profile, int], Schedule]
) -> None:
    schedule = policy(graph, random_profile(graph, random), limit)
    assert schedule.streams <= min(limit, graph.width)


@settings(deadline=None, max_examples=60)
@given(dags(largest=120), randoms)
def test_critical_path_with_streams_enough_is_as_long_as_the_longest_path(graph: OperatorGraph, random: Random) -> None:
    costs = [duration + 1.0 for duration in random_profile(graph, random).durations]
    order, stream = place(graph, costs, len(graph) + 1)
    finish = [0.0] * len(graph)
    free: dict[int, float] = {}
    for operator in order:
        start = max([free.get(stream[operator], 0.0), *(finish[s] for s in graph.predecessors[operator])])
        free[stream[operator]] = finish[operator] = start + costs[operator]
    assert max(finish) == pytest.approx(graph.longest_path(costs))


def test_critical_path_launches_the_long_branch_first_and_keeps_it_on_its_stream() -> None:
    graph = OperatorGraph.from_edges(6, [(0, 1), (0, 2), (2, 3), (3, 4), (1, 5), (4, 5)])
    schedule = critical_path(graph, Profile.uniform(6), 2)
    stream = {step.operator: step.stream for step in schedule.steps}
    assert schedule.order.index(2) < schedule.order.index(1)
    assert {stream[operator] for operator in (0, 2, 3, 4, 5)} == {0}
    assert (stream[1], schedule.synchronisations) == (1, 2)


@pytest.mark.parametrize("policy", [critical_path, heft, packed, ios, search])
def test_no_streams_are_refused(policy: Callable[[OperatorGraph, Profile, int], Schedule]) -> None:
    with pytest.raises(ValueError, match="at least one stream"):
        policy(OperatorGraph.from_edges(1, []), Profile.uniform(1), 0)


@settings(deadline=None, max_examples=60)
@given(dags(largest=120), randoms, st.integers(1, 9), st.sampled_from([0.0, 0.5, 5.0]))
def test_heft_by_its_definition(graph: OperatorGraph, random: Random, limit: int, wait_us: float) -> None:
    costs = [duration + 1.0 for duration in random_profile(graph, random).durations]
    order, stream = heft_place(graph, costs, wait_us, limit)
    tails = graph.tails(costs)
    assert order == sorted(order, key=lambda operator: -tails[operator])
    finish: dict[int, float] = {}
    free = [0.0] * limit
    for operator in order:
        starts = [
            max([free[s], *(finish[p] + wait_us * (stream[p] != s) for p in graph.predecessors[operator])])
            for s in range(limit)
        ]
        chosen = stream[operator]
        assert starts[chosen] == min(starts)
        free[chosen] = finish[operator] = starts[chosen] + costs[operator]


def test_heft_stays_on_a_stream_where_a_wait_costs_more_than_it_gains() -> None:
    graph = OperatorGraph.from_edges(4, [(0, 1), (0, 2), (1, 3), (2, 3)])
    assert heft_place(graph, [2.0] * 4, 0.5, 4) == ([0, 1, 2, 3], [0, 0, 1, 1])
    assert heft_place(graph, [2.0] * 4, 3.0, 4) == ([0, 1, 2, 3], [0, 0, 0, 0])


def test_heft_takes_the_stream_that_needs_no_wait_then_the_one_idle_for_the_shortest_time() -> None:
    # 0 and 1 end at 9 and 5; 2 follows 1; 3 could go after either of 0 and 2, and would keep 0's idle for longer.
    graph = OperatorGraph.from_edges(5, [(1, 2), (0, 3), (1, 3), (2, 4), (3, 4)])
    assert heft_place(graph, [9.0, 5.0, 3.0, 4.0, 1.0], 0.0, 2)[1] == [0, 1, 1, 0, 0]


def full(*durations: float, footprint: float = 0.8) -> Profile:
    operators = tuple(OperatorProfile(duration, 0, 1, footprint=footprint) for duration in durations)
    return Profile(operators, Roofline(1.0, 1.0))


def test_packed_lets_those_with_time_to_spare_wait_for_room() -> None:
    # A chain of three beside one that may run at any time: at once, both would run at 1 / 1.6 of their speed.
    graph = OperatorGraph.from_edges(5, [(0, 1), (1, 2), (2, 4), (3, 4)])
    profile = full(5.0, 5.0, 5.0, 4.0, 1.0)
    past = ordered_pairs(make_schedule(graph, profile, "packed"))
    assert past[1] == 1 << 0, "the chain waits for nobody else"
    assert past[3] & 1 << 0, "the other one starts when the first has made room"
    roomy = full(5.0, 5.0, 5.0, 4.0, 1.0, footprint=0.5)
    assert ordered_pairs(make_schedule(graph, roomy, "packed")) == true_order(graph)


def test_packed_knows_that_a_wait_takes_time() -> None:
    graph = OperatorGraph.from_edges(4, [(0, 1), (0, 2), (0, 3)])
    schedule = make_schedule(graph, full(1.0, 5.0, 4.9, 1.0, footprint=0.1), "packed:2")
    stream = {step.operator: step.stream for step in schedule.steps}
    assert stream[0] == stream[1] != stream[2]
    assert stream[3] == stream[1], "2 is shorter, but has to wait first"


def test_packed_lets_nobody_wait_who_is_as_urgent_as_those_that_run() -> None:
    graph = OperatorGraph.from_edges(3, [(0, 2), (1, 2)])
    assert ordered_pairs(make_schedule(graph, full(5.0, 5.0, 1.0), "packed")) == true_order(graph)


def test_prioritise_marks_the_streams_of_the_longest_path() -> None:
    graph = OperatorGraph.from_edges(5, [(0, 1), (0, 2), (1, 3), (2, 3), (0, 4)])
    operators = tuple(OperatorProfile(duration, 0, 1) for duration in (1.0, 1.0, 9.0, 1.0, 3.0))
    profile = Profile(operators, Roofline(1.0, 1.0))
    schedule = make_schedule(graph, profile, "opara")
    stream = {step.operator: step.stream for step in schedule.steps}
    urgent = prioritise(graph, profile, schedule)
    assert (urgent.policy, urgent.urgent) == ("urgent(opara)", frozenset((stream[0], stream[2], stream[3])))
    assert stream[4] not in urgent.urgent


def test_quick_policies_have_fewer_streams_than_the_graph_is_wide() -> None:
    plain = [name for name in POLICIES if name not in {"ios", "search"}]
    assert quick_policies(1) == quick_policies(2) == plain
    lists = ("critical_path", "heft", "packed")
    assert quick_policies(4) == [*plain, *(f"{name}:{count}" for name in lists for count in (3, 2))]
    assert {f"{name}:{count}" for name in lists for count in (8, 6, 4)} <= set(quick_policies(9))


@settings(deadline=None, max_examples=20)
@given(dags(largest=60), randoms)
def test_a_search_that_is_stopped_at_once_is_its_best_start(graph: OperatorGraph, random: Random) -> None:
    profile = random_profile(graph, random)
    found = make_schedule(graph, profile, "search", stop=lambda: True)
    start = found.policy.removeprefix("search(").removesuffix(")")
    assert replace(found, policy=start) == make_schedule(graph, profile, start)
    assert make_schedule(graph, profile, f"search({start})", stop=lambda: True) == found


def saved_googlenet() -> OperatorGraph:
    return OperatorGraph.from_json(json.loads(SAVED_GOOGLENET.read_text())["graph"])


@pytest.mark.parametrize("make", [googlenet, saved_googlenet], ids=["by hand", "exported"])
def test_googlenet_has_28_streams_with_algorithm_1_and_4_with_nimble_in_the_same_order(
    make: Callable[[], OperatorGraph],
) -> None:
    graph = make()
    profile = Profile.uniform(len(graph))
    by_opara, by_nimble = make_schedule(graph, profile, "opara"), make_schedule(graph, profile, "nimble")
    assert (by_opara.streams, by_nimble.streams, graph.width) == (28, 4, 4)
    assert ordered_pairs(by_opara) == ordered_pairs(by_nimble) == true_order(graph)
    assert compact(graph, by_opara).streams == 4


def test_googlenets_order_has_as_many_pairs_as_published() -> None:
    graph = googlenet()
    before = happens_before(make_schedule(graph, Profile.uniform(len(graph)), "opara"))
    assert sum(before(a, b) for a in range(len(graph)) for b in range(len(graph))) == 18_513


def test_the_scheduling_core_needs_neither_torch_nor_numpy() -> None:
    script = (
        "import sys\n"
        "import opara_server.engine.schedule, opara_server.engine.policies, opara_server.engine.simulate\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
