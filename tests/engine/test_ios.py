"""Stages by dynamic programming: as cheap as the cheapest there are, and within its budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.policies.ios import chains_of, in_stages, ios, stage_us
from opara_server.engine.policies.stages import LEAST_STAGES, Groups, Limits, Poset, best_stages, groups_of
from opara_server.engine.profile import OperatorProfile, Profile, Roofline
from opara_server.engine.schedule import check
from opara_server.engine.simulate import IDEAL
from tests.engine.dags import dags, googlenet, ordered_pairs, random_dag, random_profile, randoms

ALL = Limits(per_group=99, groups=99, states=10**6, stages=10**6)


def poset_of(graph: OperatorGraph) -> Poset:
    return Poset.of(graph.predecessors, [1.0] * len(graph), [0.0] * len(graph))


def prices(seed: int) -> Callable[[Groups], float]:
    """Any price for any stage: nothing that the search could guess. More groups are cheaper by and large."""

    @cache
    def price(groups: Groups) -> float:
        elements = sum(map(len, groups))
        return 2.0 + elements / len(groups) + 2 * Random(f"{seed} {groups}").random()

    return price


def every_partition(poset: Poset, done: int, limits: Limits) -> Iterator[list[Groups]]:
    """All ways to take the rest apart into stages, by looking at all subsets."""
    left = [element for element in range(len(poset.needs)) if not done >> element & 1]
    if not left:
        yield []
    for bits in range(1, 1 << len(left)):
        stage = sum(1 << element for place, element in enumerate(left) if bits >> place & 1)
        groups = groups_of(poset, stage)
        closed = all(not poset.needs[element] & ~(done | stage) for group in groups for element in group)
        if closed and len(groups) <= limits.groups and max(map(len, groups)) <= limits.per_group:
            yield from ([groups, *rest] for rest in every_partition(poset, done | stage, limits))


@settings(deadline=None, max_examples=60)
@given(dags(largest=6), randoms)
def test_no_stages_are_cheaper(graph: OperatorGraph, random: Random) -> None:
    poset, price = poset_of(graph), prices(random.randrange(99))
    limits = Limits(random.randint(1, 4), random.randint(1, 4), ALL.states, ALL.stages)
    found = best_stages(poset, price, limits)
    assert found in list(every_partition(poset, 0, limits))
    least = min(sum(map(price, stages)) for stages in every_partition(poset, 0, limits))
    assert sum(map(price, found)) == pytest.approx(least)


@settings(deadline=None, max_examples=60)
@given(dags(largest=60), randoms)
def test_within_a_budget_the_stages_are_right_and_no_more_are_priced(graph: OperatorGraph, random: Random) -> None:
    poset = poset_of(graph)
    priced: list[Groups] = []

    def price(groups: Groups) -> float:
        priced.append(groups)
        return prices(0)(groups)

    budget = random.choice([1, 500, 5000])
    limits = Limits.within(budget, len(graph), per_group=random.randint(1, 3), groups=random.randint(1, 9))
    done: set[int] = set()
    for groups in best_stages(poset, price, limits):
        assert len(groups) <= limits.groups
        for group in groups:
            assert len(group) <= limits.per_group
            for place, element in enumerate(group):
                assert done.union(group[:place]).issuperset(graph.predecessors[element])
        done.update(element for group in groups for element in group)
    assert len(done) == len(graph)
    assert len(priced) <= max(budget, LEAST_STAGES * len(graph))
    assert len(priced) == len(set(priced)), "a price is asked for once"


def test_a_small_budget_still_finds_the_obvious_stages() -> None:
    graph = OperatorGraph.from_edges(14, [(0, i) for i in range(1, 13)] + [(i, 13) for i in range(1, 13)])
    found = best_stages(poset_of(graph), lambda _: 1.0, Limits.within(1, 14, per_group=1, groups=12))
    assert found == [((0,),), tuple((i,) for i in range(1, 13)), ((13,),)]


@settings(deadline=None, max_examples=60)
@given(dags())
def test_chains_hold_what_nothing_forks_from_or_joins(graph: OperatorGraph) -> None:
    chains = chains_of(graph)
    assert sorted(operator for chain in chains for operator in chain) == list(range(len(graph)))
    assert [chain[0] for chain in chains] == sorted(chain[0] for chain in chains)
    linked = {pair for chain in chains for pair in pairwise(chain)}
    lonely = {(p[0], o) for o, p in enumerate(graph.predecessors) if len(p) == 1 and len(graph.successors[p[0]]) == 1}
    assert linked == lonely


def test_a_stage_ends_before_the_next_begins_and_its_groups_run_side_by_side() -> None:
    graph = OperatorGraph.from_edges(7, [(0, 1), (0, 2), (1, 3), (2, 4), (4, 5), (3, 6), (5, 6)])
    stages: list[list[tuple[int, ...]]] = [[(0,)], [(1, 3), (2, 4)], [(5,)], [(6,)]]
    schedule = in_stages(graph, stages)
    check(graph, schedule)
    past = ordered_pairs(schedule)
    assert past[1] == past[2] == 0b1
    assert (past[3], past[4]) == (0b11, 0b101)
    assert past[5] == 0b11111
    stream = {step.operator: step.stream for step in schedule.steps}
    assert stream[0] == stream[1] == stream[3]
    assert stream[2] == stream[4] == stream[5] == stream[6], "each goes on where a predecessor has left"
    assert schedule.synchronisations == 2, "0 before 2, and 3 before 5"


def test_a_stage_takes_as_long_as_its_groups_side_by_side() -> None:
    graph = OperatorGraph.from_edges(5, [(0, 1), (0, 2), (1, 3), (2, 4)])
    operators = tuple(OperatorProfile(duration, 0, 0, footprint=0.25) for duration in (9.0, 2.0, 4.0, 3.0, 5.0))
    profile = Profile(operators, Roofline(1.0, 1.0))
    latency = replace(IDEAL, dependency_us=1.0)
    assert stage_us(graph, profile, [(1, 3), (2,)], latency) == 6.0
    assert stage_us(graph, profile, [(1, 3), (2, 4)], latency) == 10.0


@pytest.mark.parametrize(("duration_us", "streams"), [(0.5, 1), (5.0, 2)])
def test_groups_that_are_shorter_than_the_wait_between_streams_are_stages_of_their_own(
    duration_us: float, streams: int
) -> None:
    operators = tuple(OperatorProfile(duration_us, 0, 1, footprint=0.1) for _ in range(2))
    assert ios(OperatorGraph.from_edges(2, []), Profile(operators, Roofline(1.0, 1e12))).streams == streams


def test_googlenet_has_a_stage_per_module_with_a_group_per_branch() -> None:
    graph = googlenet()
    operators = tuple(OperatorProfile(5.0, 0, 1, footprint=0.1) for _ in graph.operators)
    schedule = ios(graph, Profile(operators, Roofline(1.0, 1e12)))
    assert schedule.streams == 4
    assert max(len(step.waits) for step in schedule.steps) == 3
    assert schedule.synchronisations == 9 * 6, "three branches leave their module's first stream, and come back"


def test_the_same_arguments_give_the_same_schedule() -> None:
    graph = random_dag(25, 1.5, 30, Random(0))
    profile = random_profile(graph, Random(0))
    assert ios(graph, profile, 3) == ios(graph, profile, 3)
    assert ios(graph, profile, 3).streams <= 3
