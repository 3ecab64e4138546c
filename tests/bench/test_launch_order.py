"""Launch orders: all of them valid, on one and the same assignment to streams."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.launch_order import depth_first, orders, schedules
from opara_server.engine.graph import OperatorGraph
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import check
from tests.engine.dags import dags


@given(dags(largest=60), st.integers(1, 8))
def test_every_order_is_valid_and_moves_nothing_to_another_stream(graph: OperatorGraph, max_streams: int) -> None:
    made = schedules(graph, orders(graph, Profile.uniform(len(graph)), random_orders=2), max_streams)
    assert len(made) == 8
    together = set()
    for schedule in made:
        check(graph, schedule)
        assert schedule.streams <= max_streams
        on_stream: dict[int, set[int]] = {}
        for step in schedule.steps:
            on_stream.setdefault(step.stream, set()).add(step.operator)
        together.add(frozenset(map(frozenset, on_stream.values())))
    assert len(together) == 1


def test_depth_first_ends_a_branch_before_it_begins_the_next() -> None:
    two_branches = OperatorGraph.from_edges(6, [(0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 5)])
    assert depth_first(two_branches) == [0, 1, 3, 2, 4, 5]


def test_orders_differ() -> None:
    wide = OperatorGraph.from_edges(9, [(0, n) for n in range(1, 5)] + [(n, n + 4) for n in range(1, 5)])
    named = orders(wide, Profile.uniform(9))
    assert named["breadth first"] != named["depth first"]
    assert len({tuple(order) for name, order in named.items() if name.startswith("random")}) > 4
