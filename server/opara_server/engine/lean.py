"""Less memory for the same schedule: order is added where it should cost no time, so that more buffers share bytes.

Buffers share bytes only where a schedule proves that one is done with before the other is begun, and a parallel one
proves little: most of what runs one after the other does so by chance. Here a simulation says what is in use when;
operators that would then need more than the limit are put off; and of the buffers that are never in use at the same
time those that come to lie in the same bytes are given the waits that prove it. The idea of adding order until no run
can need more: Marchal, Simon and Vivien, Limiting the memory footprint when dynamically scheduling DAGs on
shared-memory platforms (Journal of Parallel and Distributed Computing 128, 2019). No torch in here.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from opara_server.engine.affordable import affordable_order
from opara_server.engine.arena import bits, pack, rounded
from opara_server.engine.graph import OperatorGraph
from opara_server.engine.memory import apart, arena_users, live_bytes, memory_bytes, plan_arena
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import Schedule, assemble, happens_before, urgent_in
from opara_server.engine.simulate import Latency, simulate

# From the most cautious on: for how many µs bytes must have been idle in the simulation before they are used again, and
# from which share of the limit on buffers are worth a wait. Short pauses are as likely to be none on a device.
RUNGS = ((20.0, 1 / 20), (20.0, 1 / 50), (5.0, 1 / 200), (1.0, 0.0))
FREE = 1.005  # times as slow, by simulation: no reason to be less cautious
ATTEMPTS = 2  # per rung: a packing needs a little more than what is in use at once

Interval = tuple[float, float]


def lean(
    graph: OperatorGraph, schedule: Schedule, profile: Profile, latency: Latency, limit_bytes: int
) -> Schedule | None:
    """``schedule``, which needs more than ``limit_bytes`` (memory_bytes), with more order so that it needs no more.

    Every operator stays on its stream; where the limit allows, also in its place there, and it waits at least for what
    it waited for. Named "lean(POLICY)". Of several the one with the shortest simulated run. None where no order was
    found that is enough: only ARENA buffers can share more. The same arguments give the same schedule.
    """
    simulation = simulate(graph, schedule, profile, latency)
    immovable = memory_bytes(graph, schedule) - plan_arena(graph, schedule).size
    least = live_bytes(graph, range(len(graph)))
    if immovable + least > limit_bytes:
        return None
    found: list[tuple[float, Schedule]] = []
    for slack_us, share in RUNGS:
        capacity = limit_bytes - immovable
        for _ in range(ATTEMPTS):
            timeline = _timeline(graph, schedule, simulation.intervals, capacity, slack_us)
            ordered = _ordered(graph, schedule, timeline, slack_us, share * limit_bytes, limit_bytes - immovable)
            excess = memory_bytes(graph, ordered) - limit_bytes
            if excess <= 0:
                found.append((simulate(graph, ordered, profile, latency).makespan_us, ordered))
                break
            capacity = max(least, capacity - excess)
        if found and found[-1][0] <= FREE * simulation.makespan_us:
            break
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _timeline(
    graph: OperatorGraph, schedule: Schedule, intervals: Sequence[Interval], capacity: int, slack_us: float
) -> dict[int, Interval]:
    """When each operator should run so that the ARENA buffers in use never take more than ``capacity`` bytes: as in the
    simulation, or later. In the order of their starts.

    Memory is given out in the order in which the operators start in the simulation, as far as it is affordable. A
    buffer takes it from the start of its first user until ``slack_us`` after the end of its last.
    """
    place = {operator: number for number, operator in enumerate(schedule.order)}
    order = affordable_order(graph, sorted(place, key=lambda o: (intervals[o][0], place[o])), capacity)
    follows = _follows(graph, schedule, order)
    users = arena_users(graph, order)
    first = _by_operator(users, 0)
    last = _by_operator(users, -1)
    size = {buffer: rounded(graph.buffers[buffer].size) for buffer in users}
    timeline: dict[int, Interval] = {}
    taken = 0  # by buffers whose last user is still to come
    returns: list[tuple[float, int]] = []  # sorted: when memory is free again, and how much
    for operator in order:
        wanted = sum(size[buffer] for buffer in first.get(operator, ()))
        start = max([intervals[operator][0], *(timeline[source][1] for source in follows[operator])])
        if wanted:
            start = _room_us(returns, capacity - taken - wanted, start)
        timeline[operator] = start, start + max(0.0, intervals[operator][1] - intervals[operator][0])
        taken += wanted
        for buffer in last.get(operator, ()):
            taken -= size[buffer]
            insort(returns, (max(timeline[user][1] for user in users[buffer]) + slack_us, size[buffer]))
    return dict(sorted(timeline.items(), key=lambda item: item[1][0]))


def _follows(graph: OperatorGraph, schedule: Schedule, order: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Per operator those that it directly runs after, launched in ``order``."""
    stream = {step.operator: step.stream for step in schedule.steps}
    waits = _waits(schedule, order)
    previous: dict[int, int] = {}
    found = {}
    for operator in order:
        on_stream = (previous[stream[operator]],) if stream[operator] in previous else ()
        found[operator] = (*graph.predecessors[operator], *waits[operator], *on_stream)
        previous[stream[operator]] = operator
    return found


def _waits(schedule: Schedule, order: Iterable[int]) -> dict[int, list[int]]:
    """Per operator those that it waits for, less those that ``order`` has after it."""
    place = {operator: number for number, operator in enumerate(order)}
    return {s.operator: [wait for wait in s.waits if place[wait] < place[s.operator]] for s in schedule.steps}


def _by_operator(users: Mapping[int, Sequence[int]], index: int) -> dict[int, list[int]]:
    """Per operator the buffers whose user number ``index`` it is."""
    found: dict[int, list[int]] = {}
    for buffer, of_one in users.items():
        found.setdefault(of_one[index], []).append(buffer)
    return found


def _room_us(returns: Sequence[tuple[float, int]], allowed: int, start_us: float) -> float:
    """From when on, ``start_us`` at the earliest, no more than ``allowed`` bytes are still to be returned."""
    for at_us, size in reversed(returns):
        allowed -= size
        if at_us <= start_us:
            break
        if allowed < 0:
            return at_us
    return start_us


def _ordered(
    graph: OperatorGraph,
    schedule: Schedule,
    timeline: Mapping[int, Interval],
    slack_us: float,
    least_bytes: float,
    enough: int,
) -> Schedule:
    """``schedule`` in the order of ``timeline``, with waits between the users of buffers of at least ``least_bytes``
    that lie in the same bytes when it goes by the clock. ``enough``: an arena that is as small as it needs to be."""
    stream = [0] * len(graph)
    for step in schedule.steps:
        stream[step.operator] = step.stream
    waits = _waits(schedule, timeline)
    policy = f"lean({schedule.policy})"
    users = arena_users(graph, timeline)
    sizes = {buffer: graph.buffers[buffer].size for buffer in users}
    proven = apart(happens_before(assemble(policy, graph, timeline, stream, waits)), users)
    later = _later(users, timeline, slack_us, [buffer for buffer in users if sizes[buffer] >= least_bytes])
    allowed = {buffer: proven[buffer] | later[buffer] for buffer in users}
    for buffer in users:
        for other in bits(later[buffer]):
            allowed[other] |= 1 << buffer
    offsets = pack(sizes, allowed, enough).offsets
    for buffer in users:
        for other in bits(later[buffer] & ~proven[buffer]):
            if offsets[buffer] < offsets[other] + sizes[other] and offsets[other] < offsets[buffer] + sizes[buffer]:
                for user in users[other]:
                    waits[user] += users[buffer]
    ordered = assemble(policy, graph, timeline, stream, waits)
    return replace(ordered, urgent=urgent_in(schedule, ordered))


def _later(
    users: Mapping[int, Sequence[int]], timeline: Mapping[int, Interval], slack_us: float, chosen: Sequence[int]
) -> dict[int, int]:
    """Per buffer a bit set of the others that are first used ``slack_us`` after its last use at the earliest; both
    among ``chosen``."""
    begin = {buffer: min(timeline[user][0] for user in users[buffer]) for buffer in chosen}
    by_begin = sorted(chosen, key=lambda buffer: begin[buffer])
    begins = [begin[buffer] for buffer in by_begin]
    from_there_on = [0] * (len(by_begin) + 1)
    for number in reversed(range(len(by_begin))):
        from_there_on[number] = from_there_on[number + 1] | 1 << by_begin[number]
    later = dict.fromkeys(users, 0)
    for buffer in chosen:
        idle_us = max(timeline[user][1] for user in users[buffer]) + slack_us
        later[buffer] = from_there_on[bisect_left(begins, idle_us)]
    return later
