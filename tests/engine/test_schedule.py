"""Schedules: the validator, the waits, fewer streams, and when buffers may be freed."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opara_server.engine.graph import Buffer, Kind, Operator, OperatorGraph
from opara_server.engine.memory import plan_releases
from opara_server.engine.policies import make_schedule
from opara_server.engine.schedule import (
    Schedule,
    ScheduleError,
    Step,
    assemble,
    check,
    compact,
    fold,
    happens_before,
)
from tests.engine.dags import QUICK_POLICIES, dags, ordered_pairs, programs, random_profile, true_order

DIAMOND = OperatorGraph.from_edges(4, [(0, 1), (0, 2), (1, 3), (2, 3)])
SEEDS = st.integers(0, 2**32 - 1)


def random_schedule(graph: OperatorGraph, random: Random, streams: int) -> Schedule:
    """Any topological order, any stream for each operator."""
    missing = [len(sources) for sources in graph.predecessors]
    ready = [operator for operator, count in enumerate(missing) if count == 0]
    order = []
    while ready:
        operator = ready.pop(random.randrange(len(ready)))
        order.append(operator)
        for successor in graph.successors[operator]:
            missing[successor] -= 1
            if missing[successor] == 0:
                ready.append(successor)
    return assemble("random", graph, order, [random.randrange(streams) for _ in range(len(graph))])


@settings(deadline=None, max_examples=100)
@given(dags(), SEEDS, st.sampled_from([1, 2, 5, 40]))
def test_any_order_on_any_streams_is_made_right(graph: OperatorGraph, seed: int, streams: int) -> None:
    schedule = random_schedule(graph, Random(seed), streams)
    check(graph, schedule)
    past = ordered_pairs(schedule)
    assert all(past[operator] & needed == needed for operator, needed in true_order(graph).items())


@settings(deadline=None, max_examples=100)
@given(dags(largest=120), SEEDS, st.sampled_from([1, 2, 5, 40]))
def test_vector_clocks_agree_with_the_transitive_closure(graph: OperatorGraph, seed: int, streams: int) -> None:
    schedule = random_schedule(graph, Random(seed), streams)
    before, past = happens_before(schedule), ordered_pairs(schedule)
    for first in range(len(graph)):
        for second in range(len(graph)):
            assert before(first, second) == bool(past[second] >> first & 1)


@settings(deadline=None, max_examples=25)
@given(dags(largest=40), SEEDS)
def test_every_wait_is_needed(graph: OperatorGraph, seed: int) -> None:
    schedule = random_schedule(graph, Random(seed), 4)
    for position, step in enumerate(schedule.steps):
        for wait in step.waits:
            weaker = replace(step, waits=tuple(w for w in step.waits if w != wait))
            steps = (*schedule.steps[:position], weaker, *schedule.steps[position + 1 :])
            with pytest.raises(ScheduleError, match="may start before"):
                check(graph, Schedule("weaker", steps))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Step(0, 0), Step(1, 0), Step(2, 1), Step(3, 0, (2,))], "2 may start before 0"),
        ([Step(0, 0), Step(1, 0), Step(2, 1, (0,)), Step(3, 0)], "3 may start before 2"),
        ([Step(0, 0), Step(2, 0), Step(1, 0)], "not each of 4 once"),
        ([Step(0, 0), Step(1, 0), Step(2, 0), Step(3, 0), Step(3, 0)], "not each of 4 once"),
        ([Step(0, 0), Step(1, 0), Step(2, 0), Step(2, 0)], "not each of 4 once"),
        ([Step(0, 0), Step(1, 0), Step(2, 0), Step(4, 0)], "not each of 4 once"),
        ([Step(0, 0), Step(1, 0, (2,)), Step(2, 1, (0,)), Step(3, 0)], "1 waits for 2, which is not launched"),
        ([Step(0, 0), Step(1, 0), Step(2, 1, (0,)), Step(3, 0, (7,))], "3 waits for 7, which is not launched"),
        ([Step(1, 0), Step(0, 0), Step(2, 0), Step(3, 0)], "1 may start before 0"),
        ([], "not each of 4 once"),
    ],
)
def test_check_catches(steps: list[Step], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        check(DIAMOND, Schedule("broken", tuple(steps)))


def test_check_accepts_waits_that_others_imply() -> None:
    steps = (Step(0, 0), Step(1, 0), Step(2, 1, (0,)), Step(3, 0, (2, 0)))
    check(DIAMOND, Schedule("generous", steps))


def test_assemble_numbers_streams_by_first_launch_and_waits_once() -> None:
    schedule = assemble("test", DIAMOND, [0, 2, 1, 3], [9, 5, 9, -3])
    assert schedule.steps == (Step(0, 0), Step(2, 0), Step(1, 1, (0,)), Step(3, 2, (2, 1)))
    assert (schedule.streams, schedule.synchronisations, schedule.order) == (3, 3, (0, 2, 1, 3))


def test_assemble_refuses_an_order_that_is_not_topological() -> None:
    with pytest.raises(ScheduleError, match=r"operator 3 is launched before \[2\]"):
        assemble("test", DIAMOND, [0, 1, 3, 2], [0, 0, 0, 0])


@pytest.mark.parametrize("count", [0, 1])
def test_smallest_schedules(count: int) -> None:
    graph = OperatorGraph.from_edges(count, [])
    schedule = assemble("test", graph, range(count), [0] * count)
    for variant in (schedule, compact(graph, schedule), fold(graph, schedule, 1)):
        check(graph, variant)
        assert (variant.streams, variant.synchronisations) == (count, 0)
    assert plan_releases(graph, schedule) == ((),) * count


@settings(deadline=None, max_examples=100)
@given(dags(), SEEDS, st.sampled_from([*QUICK_POLICIES, "random"]))
def test_compact_keeps_the_order_and_never_adds_streams(graph: OperatorGraph, seed: int, policy: str) -> None:
    random = Random(seed)
    if policy == "random":
        schedule = random_schedule(graph, random, 40)
    else:
        schedule = make_schedule(graph, random_profile(graph, random), policy)
    compacted = compact(graph, schedule)
    check(graph, compacted)
    assert ordered_pairs(compacted) == ordered_pairs(schedule)
    assert compacted.streams <= schedule.streams
    assert compacted.order == schedule.order


def test_compact_follows_chains_of_streams() -> None:
    line = OperatorGraph.from_edges(4, [(0, 1), (1, 2), (2, 3)])
    assert compact(line, assemble("test", line, range(4), range(4))).streams == 1


@settings(deadline=None, max_examples=100)
@given(dags(), SEEDS, st.sampled_from([*QUICK_POLICIES]), st.sampled_from([1, 2, 3, 32]))
def test_fold_keeps_the_limit_and_loses_no_order(graph: OperatorGraph, seed: int, policy: str, limit: int) -> None:
    schedule = make_schedule(graph, random_profile(graph, Random(seed)), policy)
    folded = fold(graph, schedule, limit)
    check(graph, folded)
    assert folded.streams == min(limit, schedule.streams)
    kept = ordered_pairs(folded)
    assert all(kept[operator] & past == past for operator, past in ordered_pairs(schedule).items())


def test_fold_refuses_no_streams() -> None:
    with pytest.raises(ValueError, match="at least one stream"):
        fold(DIAMOND, assemble("test", DIAMOND, range(4), [0] * 4), 0)


def test_urgent_streams_stay_with_their_operators() -> None:
    graph = OperatorGraph.from_edges(6, [(0, 2), (1, 3), (2, 4), (3, 5)])
    schedule = replace(assemble("test", graph, range(6), range(6)), urgent=frozenset({3}))
    for variant in (compact(graph, schedule), fold(graph, schedule, 2)):
        assert variant.urgent == {step.stream for step in variant.steps if step.operator == 3}


@settings(deadline=None, max_examples=150)
@given(programs(largest=150), SEEDS, st.sampled_from([*QUICK_POLICIES, "random"]), st.sampled_from([2, 6, 500]))
def test_buffers_are_freed_once_after_all_users_at_the_first_chance(
    graph: OperatorGraph, seed: int, policy: str, streams: int
) -> None:
    random = Random(seed)
    if policy == "random":
        schedule = random_schedule(graph, random, streams)
    else:
        schedule = fold(graph, make_schedule(graph, random_profile(graph, random), policy), streams)
    past = ordered_pairs(schedule)
    releases = plan_releases(graph, schedule)
    freed = {buffer: position for position, buffers in enumerate(releases) for buffer in buffers}
    assert len(freed) == sum(len(buffers) for buffers in releases)
    for buffer, properties in enumerate(graph.buffers):
        users = [s.operator for s in schedule.steps if buffer in graph.operators[s.operator].reads]
        writers = [s for s in schedule.steps if buffer in graph.operators[s.operator].writes]
        if properties.kind is not Kind.ACTIVATION or not writers:
            assert buffer not in freed
            continue
        must = sum(1 << operator for operator in {*users, *(s.operator for s in writers)})
        safe = [
            position
            for position, step in enumerate(schedule.steps)
            if step.stream == writers[0].stream and past[step.operator] & must == must
        ]
        assert freed.get(buffer) == (safe[0] if safe else None)


def test_a_block_is_not_freed_while_another_stream_may_still_read_it() -> None:
    buffers = [Buffer(4)] * 5
    operators = [
        Operator("make", "t", (), (0,)),
        Operator("far_reader", "t", (0,), (1,)),
        Operator("near_reader", "t", (0,), (2,)),
        Operator("next", "t", (2,), (3,)),
        Operator("join", "t", (1, 3), (4,)),
    ]
    graph = OperatorGraph.from_accesses(operators, buffers)
    schedule = assemble("test", graph, range(5), [0, 1, 0, 0, 0])
    assert plan_releases(graph, schedule) == ((), (), (), (), (0, 2))  # buffer 0 waits for the far reader
