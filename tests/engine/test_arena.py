"""The arena: no two buffers in one place that may be in use at the same time, and little more memory than must be."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, combinations
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opara_server.engine.arena import ALIGNMENT, Arena, pack
from opara_server.engine.graph import Buffer, Kind, Operator, OperatorGraph
from opara_server.engine.memory import live_bytes, memory_bytes, plan_arena, plan_releases
from opara_server.engine.policies import make_schedule
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import Schedule, assemble
from tests.engine.dags import QUICK_POLICIES, explicit, ordered_pairs, programs, random_dag, random_profile, randoms
from tests.engine.test_schedule import random_schedule

SAVED = Path(__file__).parents[2] / "bench" / "data"


def rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def users_of(graph: OperatorGraph) -> dict[int, set[int]]:
    """Per explicit buffer those who read or write it."""
    found: dict[int, set[int]] = {}
    for index, operator in enumerate(graph.operators):
        for buffer in (*operator.reads, *operator.writes):
            if graph.buffers[buffer].kind is Kind.ARENA:
                found.setdefault(buffer, set()).add(index)
    return found


def conflicts(graph: OperatorGraph, schedule: Schedule) -> set[tuple[int, int]]:
    """The pairs of buffers, by definition: some user of each does not happen before some user of the other."""
    past, users = ordered_pairs(schedule), users_of(graph)

    def before(one: int, other: int) -> bool:
        return all(past[second] >> first & 1 for first in users[one] for second in users[other])

    return {(a, b) for a, b in combinations(users, 2) if not before(a, b) and not before(b, a)}


def overlaps(graph: OperatorGraph, arena: Arena, one: int, other: int) -> bool:
    begin, end = (
        max(arena.offsets[b] for b in (one, other)),
        min(arena.offsets[b] + graph.buffers[b].size for b in (one, other)),
    )
    return begin < end


def largest_live_set(graph: OperatorGraph, schedule: Schedule) -> int:
    """Of a schedule on one stream: no placement needs less."""
    place = {operator: position for position, operator in enumerate(schedule.order)}
    change = [0] * (len(schedule.steps) + 1)
    for buffer, users in users_of(graph).items():
        places = [place[user] for user in users]
        change[min(places)] += rounded(graph.buffers[buffer].size)
        change[max(places) + 1] -= rounded(graph.buffers[buffer].size)
    return max(accumulate(change))


@settings(deadline=None, max_examples=150)
@given(programs(largest=80).map(explicit), randoms, st.sampled_from([*QUICK_POLICIES, "critical_path:2", "random"]))
def test_what_may_be_in_use_at_the_same_time_lies_apart(graph: OperatorGraph, random: Random, policy: str) -> None:
    graph = resized(graph, random)
    if policy == "random":
        schedule = random_schedule(graph, random, 5)
    else:
        schedule = make_schedule(graph, random_profile(graph, random), policy)
    arena = plan_arena(graph, schedule)
    assert set(arena.offsets) == set(users_of(graph))
    for buffer, offset in arena.offsets.items():
        assert offset % ALIGNMENT == 0
        assert 0 <= offset <= offset + graph.buffers[buffer].size <= arena.size
    assert not [pair for pair in conflicts(graph, schedule) if overlaps(graph, arena, *pair)]


def resized(graph: OperatorGraph, random: Random) -> OperatorGraph:
    """Buffers of all sizes, none at all included."""
    sizes = [random.choice([0, 1, 512, 513, random.randint(1, 100_000)]) for _ in graph.buffers]
    return replace(graph, buffers=tuple(replace(b, size=size) for b, size in zip(graph.buffers, sizes, strict=True)))


def test_one_stream_needs_the_largest_live_set_and_hardly_ever_a_tenth_more() -> None:
    ratios = []
    for seed in range(100):
        random = Random(seed)
        graph = random_dag(random.randint(2, 120), random.choice([0.5, 1.5, 3.0]), random.choice([4, 30, 500]), random)
        graph = resized(explicit(graph), random)
        schedule = make_schedule(graph, Profile.uniform(len(graph)), "sequential")
        assert live_bytes(graph, schedule.order) == largest_live_set(graph, schedule)
        ratios.append(plan_arena(graph, schedule).size / largest_live_set(graph, schedule))
    assert min(ratios) >= 1.0
    assert statistics.median(ratios) == 1.0
    assert statistics.quantiles(ratios, n=20)[-1] < 1.03


@pytest.mark.parametrize("path", sorted(SAVED.glob("*.json")), ids=lambda path: path.stem)
def test_real_models_on_one_stream_need_what_is_live_and_little_more(path: Path) -> None:
    graph = explicit(OperatorGraph.from_json(json.loads(path.read_text())["graph"]))
    schedule = make_schedule(graph, Profile.uniform(len(graph)), "sequential")
    assert plan_arena(graph, schedule).size <= 1.01 * largest_live_set(graph, schedule)


def test_memory_moves_between_streams_once_all_readers_are_done() -> None:
    """A block of PyTorch's allocator would stay on stream 0; what 1 may still read is not given to 2."""
    line = explicit(OperatorGraph.from_edges(4, [(0, 1), (1, 2), (2, 3)]))
    offsets = plan_arena(line, assemble("test", line, range(4), range(4))).offsets
    assert offsets[0] == offsets[2] != offsets[1] == offsets[3]
    fork = explicit(OperatorGraph.from_edges(4, [(0, 1), (0, 2), (2, 3)]))
    parallel = plan_arena(fork, assemble("test", fork, range(4), [0, 1, 0, 0]))
    assert parallel.size == 4 * ALIGNMENT
    assert plan_arena(fork, assemble("test", fork, range(4), [0] * 4)).size == 2 * ALIGNMENT


def test_the_relation_of_the_schedule_counts_not_that_of_the_graph() -> None:
    """Two chains without edges between them: on one stream, one after the other, they share memory."""
    chains = explicit(OperatorGraph.from_edges(4, [(0, 1), (2, 3)]))
    assert plan_arena(chains, assemble("test", chains, range(4), [0, 0, 0, 0])).size == 2 * ALIGNMENT
    assert plan_arena(chains, assemble("test", chains, range(4), [0, 0, 1, 1])).size == 4 * ALIGNMENT


def test_only_explicit_buffers_that_are_used_are_placed() -> None:
    kinds = (Kind.INPUT, Kind.ARENA, Kind.ACTIVATION, Kind.ARENA, Kind.OUTPUT)
    operators = [Operator("a", "t", (0,), (1,)), Operator("b", "t", (1,), (2,)), Operator("c", "t", (2,), (4,))]
    graph = OperatorGraph.from_accesses(operators, [Buffer(100, kind) for kind in kinds])
    schedule = assemble("test", graph, range(3), [0, 0, 0])
    assert plan_arena(graph, schedule) == Arena(ALIGNMENT, {1: 0})
    assert plan_releases(graph, schedule) == ((), (), ())
    assert memory_bytes(graph, schedule) == 3 * ALIGNMENT  # a block of an allocator is no smaller


def test_nothing_to_place() -> None:
    graph = OperatorGraph.from_edges(0, [])
    assert plan_arena(graph, Schedule("empty", ())) == Arena(0, {})


@pytest.mark.parametrize(
    ("sizes", "together", "expected"),
    [
        ({3: 512, 7: 512}, [], 512),
        ({3: 512, 7: 512}, [(3, 7)], 1024),
        ({0: 2048, 1: 512, 2: 2048, 3: 512}, [(0, 1), (1, 2), (2, 3)], 2560),  # by turns at the two ends
        ({0: 1, 1: 0, 2: 1}, [(0, 1), (1, 2), (0, 2)], 1024),
    ],
)
def test_pack_by_hand(sizes: Mapping[int, int], together: list[tuple[int, int]], expected: int) -> None:
    everything = sum(1 << buffer for buffer in sizes)
    apart = dict.fromkeys(sizes, everything)
    for one, other in together:
        apart[one] &= ~(1 << other)
        apart[other] &= ~(1 << one)
    assert pack(sizes, apart).size == expected


def test_packing_ends_where_it_is_good_enough() -> None:
    random = Random(5)
    sizes = {buffer: random.randint(1, 100_000) for buffer in range(80)}
    apart = dict.fromkeys(sizes, 0)
    for one, other in combinations(sizes, 2):
        if random.random() < 0.7:
            apart[one] |= 1 << other
            apart[other] |= 1 << one
    best, good_enough = pack(sizes, apart).size, pack(sizes, apart, 10_000_000).size
    assert best < good_enough
    assert pack(sizes, apart, best).size == best
