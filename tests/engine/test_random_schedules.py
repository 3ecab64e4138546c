"""Random schedules are right, differ from each other, cover what they should, and come again for the same seed."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.random_schedules import random_schedules
from opara_server.engine.schedule import check
from tests.engine.dags import dags, googlenet


@settings(deadline=None, max_examples=40)
@given(dags(largest=80), st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_each_is_right_and_within_the_limit(graph: OperatorGraph, seed: int, limit: int) -> None:
    schedules = random_schedules(graph, 6, seed, limit)
    for schedule in schedules:
        check(graph, schedule)
        assert schedule.streams <= limit
    assert len({schedule.steps for schedule in schedules}) == len(schedules)
    assert schedules == random_schedules(graph, 6, seed, limit)


def test_other_seeds_give_other_schedules() -> None:
    graph = googlenet()
    assert random_schedules(graph, 3, 0) != random_schedules(graph, 3, 1)


def test_a_chain_on_one_stream_is_one_schedule() -> None:
    graph = OperatorGraph.from_edges(3, [(0, 1), (1, 2)])
    assert len(random_schedules(graph, 40, 0, limit=1)) == 1


def test_they_run_from_two_streams_to_all_and_with_few_waits_and_many() -> None:
    graph = googlenet()
    schedules = random_schedules(graph, 40, 0)
    assert len(schedules) == 40
    streams = [schedule.streams for schedule in schedules]
    assert min(streams) == 2
    assert max(streams) > 16
    waits = [schedule.synchronisations for schedule in schedules if schedule.streams >= 8]
    assert min(waits) < len(graph) / 2 < max(waits)
    assert len({schedule.order for schedule in schedules}) == 40


def test_of_a_chain_some_change_streams_rarely_and_some_often() -> None:
    graph = OperatorGraph.from_edges(100, [(number, number + 1) for number in range(99)])
    waits = sorted(schedule.synchronisations for schedule in random_schedules(graph, 24, 0))
    assert len(waits) == 24
    assert waits[4] < 40 < waits[12] < waits[-1]
    assert max(later - earlier for earlier, later in pairwise(waits)) < 20
