"""The launch list: who records an event, who forks from the beginning, and what the end of a run waits for."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opara_server.engine.arena import ALIGNMENT
from opara_server.engine.graph import OperatorGraph
from opara_server.engine.launch import launch_list
from opara_server.engine.memory import memory_bytes, plan_arena, plan_releases
from opara_server.engine.policies import make_schedule
from opara_server.engine.schedule import (
    Schedule,
    ScheduleError,
    Step,
    assemble,
    compact,
)
from tests.engine.dags import QUICK_POLICIES, explicit, ordered_pairs, programs, random_profile
from tests.engine.test_schedule import random_schedule

SEEDS = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=60)
@given(
    st.one_of(programs(largest=80), programs(largest=80).map(explicit)),
    SEEDS,
    st.sampled_from([*QUICK_POLICIES, "random"]),
)
def test_events_forks_and_joins(graph: OperatorGraph, seed: int, policy: str) -> None:
    random = Random(seed)
    if policy == "random":
        schedule = random_schedule(graph, random, 7)
    else:
        schedule = compact(graph, make_schedule(graph, random_profile(graph, random), policy))
    listed = launch_list(graph, schedule)
    assert [(x.operator, x.stream, x.waits) for x in listed.launches] == [
        (s.operator, s.stream, s.waits) for s in schedule.steps
    ]
    assert tuple(x.frees for x in listed.launches) == plan_releases(graph, schedule)
    assert listed.arena == plan_arena(graph, schedule)
    needed = {*listed.joins, *(wait for step in schedule.steps for wait in step.waits)}
    assert {x.operator for x in listed.launches if x.awaited} == needed
    assert_everything_begins_at_the_start_and_ends_in_stream_0(
        schedule, listed.joins, {x.operator for x in listed.launches if x.fork}
    )


def assert_everything_begins_at_the_start_and_ends_in_stream_0(
    schedule: Schedule, joins: tuple[int, ...], forks: set[int]
) -> None:
    """A capture on several streams is whole only if every operator hangs on stream 0 at both ends."""
    past = ordered_pairs(schedule)
    on_stream: dict[int, list[int]] = {}
    for step in schedule.steps:
        on_stream.setdefault(step.stream, []).append(step.operator)
    firsts = {operators[0] for stream, operators in on_stream.items() if stream != 0}
    waiting = {step.operator for step in schedule.steps if step.waits}
    assert forks == firsts - waiting
    known = {*joins, *on_stream.get(0, [])[-1:]}
    ended = {operator for operator in range(len(past)) if any(past[k] >> operator & 1 for k in known)} | known
    assert ended == set(range(len(past)))
    assert not any(past[b] >> a & 1 for a in joins for b in joins)  # no join implies another


def test_by_hand() -> None:
    graph = OperatorGraph.from_edges(5, [(0, 1), (0, 2), (1, 3)])
    listed = launch_list(graph, assemble("test", graph, range(5), [0, 1, 0, 1, 2]))
    assert [(x.operator, x.waits, x.awaited, x.fork) for x in listed.launches] == [
        (0, (), True, False),
        (1, (0,), False, False),
        (2, (), False, False),
        (3, (), True, False),
        (4, (), True, True),
    ]
    assert (listed.streams, listed.joins) == (3, (3, 4))


def test_a_wrong_schedule_is_refused() -> None:
    graph = OperatorGraph.from_edges(2, [(0, 1)])
    with pytest.raises(ScheduleError, match="operator 1 may start before 0"):
        launch_list(graph, Schedule("wrong", (Step(0, 0), Step(1, 1))))


def test_no_operator_needs_one_stream() -> None:
    graph = OperatorGraph.from_edges(0, [])
    assert (launch_list(graph, Schedule("empty", ())).streams, memory_bytes(graph, Schedule("empty", ()))) == (1, 0)


def test_a_chain_needs_memory_for_two_links() -> None:
    graph = OperatorGraph.from_edges(20, [(i, i + 1) for i in range(19)])
    assert memory_bytes(graph, assemble("test", graph, range(20), [0] * 20)) == 2 * ALIGNMENT
    own = memory_bytes(graph, assemble("test", graph, range(20), range(20)))
    assert own == 20 * ALIGNMENT  # no stream reuses another's block
    for streams in ([0] * 20, range(20)):
        assert memory_bytes(explicit(graph), assemble("test", graph, range(20), streams)) == 2 * ALIGNMENT
