"""The operator graph: edges from accesses, and what is derived from edges."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opara_server.engine.graph import Buffer, Kind, Operator, OperatorGraph
from tests.engine.dags import dags, programs, true_order


def edges_by_definition(graph: OperatorGraph) -> list[set[int]]:
    """Every pair of operators, every buffer: no bookkeeping to get wrong."""
    found: list[set[int]] = [set() for _ in graph.operators]
    for first, second in combinations(range(len(graph)), 2):
        one, two = graph.operators[first], graph.operators[second]
        for buffer in {*one.reads, *one.writes} & {*two.reads, *two.writes}:
            between = any(buffer in graph.operators[o].writes for o in range(first + 1, second))
            if (buffer in one.writes or buffer in two.writes) and not between:
                found[second].add(first)
    return found


@settings(deadline=None, max_examples=60)
@given(programs(largest=60))
def test_edges_are_those_of_the_definition(graph: OperatorGraph) -> None:
    assert [set(sources) for sources in graph.predecessors] == edges_by_definition(graph)


@settings(deadline=None, max_examples=60)
@given(programs(largest=60))
def test_every_conflict_is_ordered(graph: OperatorGraph) -> None:
    past = true_order(graph)
    for first, second in combinations(range(len(graph)), 2):
        one, two = graph.operators[first], graph.operators[second]
        conflict = {*one.writes} & {*two.reads, *two.writes} or {*one.reads} & {*two.writes}
        assert not conflict or past[second] >> first & 1


def test_an_in_place_write_waits_for_earlier_readers_and_later_readers_wait_for_it() -> None:
    buffers = [Buffer(4, Kind.INPUT), *[Buffer(4)] * 4]
    operators = [
        Operator("make", "t", (0,), (1,)),
        Operator("read", "t", (1,), (2,)),
        Operator("in_place", "t", (1,), (1,)),
        Operator("read_again", "t", (1,), (3,)),
        Operator("read_input", "t", (0, 0), (4,)),
    ]
    graph = OperatorGraph.from_accesses(operators, buffers)
    assert graph.predecessors == ((), (0,), (0, 1), (2,), ())


class Slices:
    """Operators by the part of the one buffer that each touches."""

    def __init__(self, *parts: set[int]) -> None:
        self._parts = parts

    def apart(self, first: int, second: int, buffer: int) -> bool:  # noqa: ARG002
        return not self._parts[first] & self._parts[second]

    def covers(self, first: int, second: int, buffer: int) -> bool:  # noqa: ARG002
        return self._parts[first] <= self._parts[second]


def test_those_who_fill_a_buffer_side_by_side_do_not_wait_for_each_other() -> None:
    write, read = Operator("w", "t", (), (0,)), Operator("r", "t", (0,), (1,))
    graph = OperatorGraph.from_accesses([write, write, read, write], [Buffer(4)] * 2, Slices({0}, {1}, {0, 1}, {1}))
    assert graph.predecessors == ((), (), (0, 1), (1, 2))


def test_a_reader_of_one_part_waits_for_its_writers_alone() -> None:
    write, read = Operator("w", "t", (), (0,)), Operator("r", "t", (0,), ())
    parts = Slices({0, 1, 2}, {0}, {1, 2}, {0}, {0, 1}, {2})
    graph = OperatorGraph.from_accesses([write, write, write, read, write, read], [Buffer(4)], parts)
    assert graph.predecessors == ((), (0,), (0,), (0, 1), (0, 1, 2, 3), (0, 2))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 3), min_size=1)), max_size=14))
def test_conflicts_over_parts_are_ordered(accesses: list[tuple[bool, set[int]]]) -> None:
    operators = [Operator("o", "t", () if writes else (0,), (0,) if writes else ()) for writes, _ in accesses]
    graph = OperatorGraph.from_accesses(operators, [Buffer(4)], Slices(*(part for _, part in accesses)))
    past = true_order(graph)
    for (first, (writes, one)), (second, (also, two)) in combinations(enumerate(accesses), 2):
        if (writes or also) and one & two:
            assert past[second] >> first & 1
        elif first in graph.predecessors[second]:
            raise AssertionError(f"{second} waits for {first} without need")


def test_predecessors_keep_argument_order() -> None:
    operators = [Operator("a", "t", (), (0,)), Operator("b", "t", (), (1,)), Operator("cat", "t", (1, 0, 1), (2,))]
    assert OperatorGraph.from_accesses(operators, [Buffer(1)] * 3).predecessors[2] == (1, 0)


@settings(deadline=None, max_examples=60)
@given(dags(largest=60))
def test_descendants_are_the_transitive_closure(graph: OperatorGraph) -> None:
    past = true_order(graph)
    for first in range(len(graph)):
        after = {second for second in range(len(graph)) if past[second] >> first & 1}
        assert graph.descendants[first] == sum(1 << second for second in after)


@settings(deadline=None, max_examples=40)
@given(dags(largest=12))
def test_width_is_the_largest_set_of_independent_operators(graph: OperatorGraph) -> None:
    past = true_order(graph)
    widest = 0
    for chosen in range(1 << len(graph)):
        members = [o for o in range(len(graph)) if chosen >> o & 1]
        if not any(past[o] & chosen for o in members):
            widest = max(widest, len(members))
    assert graph.width == widest


def test_longest_path_depth_and_tails() -> None:
    graph = OperatorGraph.from_edges(5, [(0, 1), (0, 2), (1, 3), (2, 3)])
    durations = [1.0, 5.0, 2.0, 4.0, 7.0]
    assert graph.depth == 3
    assert graph.longest_path(durations) == 10.0
    assert graph.tails(durations) == [10.0, 9.0, 6.0, 4.0, 7.0]


@pytest.mark.parametrize("count", [0, 1])
def test_smallest_graphs(count: int) -> None:
    graph = OperatorGraph.from_edges(count, [])
    assert (len(graph), graph.width, graph.depth) == (count, count, count)
    assert graph.longest_path([2.5] * count) == 2.5 * count


@settings(deadline=None, max_examples=30)
@given(programs(largest=40))
def test_json_round_trip(graph: OperatorGraph) -> None:
    assert OperatorGraph.from_json(json.loads(graph.dumps())) == graph


@pytest.mark.parametrize("predecessors", [((), (1,)), ((), (2,)), ((), (-1,)), ((), (0, 0)), ((),)])
def test_refuses_edges_that_are_no_topological_order(predecessors: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"depends on|twice|lists of predecessors"):
        OperatorGraph((Operator("a", "t"), Operator("b", "t")), (), predecessors)


def test_refuses_buffers_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="none of the 1"):
        OperatorGraph((Operator("a", "t", (1,)),), (Buffer(1),), ((),))
