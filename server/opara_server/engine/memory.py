"""What a schedule lets buffers share: when memory may be handed on, hence how much a run needs.

Operators on several streams run when they can, so only what the happens-before relation of a schedule proves counts:
the next owner of some bytes may touch them once all users of the one before have finished. No torch in here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from operator import or_

from opara_server.engine.arena import Arena, pack, rounded
from opara_server.engine.graph import Kind, OperatorGraph
from opara_server.engine.schedule import HappensBefore, Schedule, happens_before


def plan_releases(graph: OperatorGraph, schedule: Schedule) -> tuple[tuple[int, ...], ...]:
    """Per step the activation buffers to free just before its launch.

    An allocator that hands a block freed on a stream to the next taker *on that stream* (PyTorch's) is safe under
    this rule: a buffer is freed before the first step of its writer's stream that happens after all its users.
    Buffers without such a step are freed when the capture ends, and are in no entry.
    """
    before = happens_before(schedule)
    owner: dict[int, int] = {}
    users: dict[int, list[int]] = {}
    for operator in schedule.order:
        for buffer in graph.operators[operator].writes:
            owner.setdefault(buffer, before.stream[operator])
        for buffer in {*graph.operators[operator].reads, *graph.operators[operator].writes}:
            users.setdefault(buffer, []).append(operator)
    on_stream: dict[int, list[int]] = {}
    for step in schedule.steps:
        on_stream.setdefault(step.stream, []).append(step.operator)
    released: dict[int, list[int]] = {}
    for buffer, stream in owner.items():
        if graph.buffers[buffer].kind is Kind.ACTIVATION:
            found = _first_after(before, users[buffer], on_stream[stream])
            if found is not None:
                released.setdefault(found, []).append(buffer)
    return tuple(tuple(released.get(operator, ())) for operator in schedule.order)


def _first_after(before: HappensBefore, users: Sequence[int], stream: Sequence[int]) -> int | None:
    """The first operator of a stream that starts after all ``users`` have finished; all later ones do so too."""
    found = bisect_left(stream, True, key=lambda operator: all(before(user, operator) for user in users))
    return stream[found] if found < len(stream) else None


def plan_arena(graph: OperatorGraph, schedule: Schedule) -> Arena:
    """Where in one block of memory the ARENA buffers lie that have users.

    Two of them share bytes only if all users of the one, readers and writers on whatever stream, happen before all
    users of the other. A block of an allocator stays with its stream; here memory moves between streams.
    """
    users = arena_users(graph, schedule.order)
    sizes = {buffer: graph.buffers[buffer].size for buffer in users}
    return pack(sizes, apart(happens_before(schedule), users), live_bytes(graph, schedule.order))


def live_bytes(graph: OperatorGraph, order: Sequence[int]) -> int:
    """How many bytes the ARENA buffers in use take at most when the operators run one after the other in ``order``.

    No schedule that launches them so needs less.
    """
    place = {operator: number for number, operator in enumerate(order)}
    change = [0] * (len(order) + 1)
    for buffer, users in arena_users(graph, order).items():
        change[place[users[0]]] += rounded(graph.buffers[buffer].size)
        change[place[users[-1]] + 1] -= rounded(graph.buffers[buffer].size)
    return max(accumulate(change))


def arena_users(graph: OperatorGraph, order: Iterable[int]) -> dict[int, list[int]]:
    """Per ARENA buffer the operators that read or write it, as ``order`` has them; those of no use are in no entry."""
    users: dict[int, list[int]] = {}
    for operator in order:
        for buffer in dict.fromkeys((*graph.operators[operator].reads, *graph.operators[operator].writes)):
            if graph.buffers[buffer].kind is Kind.ARENA:
                users.setdefault(buffer, []).append(operator)
    return users


def apart(before: HappensBefore, users: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """Per buffer a bit set of those whose users all happen before, or all after, all of its own. ``users``: in launch
    order.

    One comes before another if on each stream the place of its last user is not beyond what has finished there when the
    other's first user starts: per stream and place one bit set, so that no pair of buffers is looked at.
    """
    finished = {b: [min(c) for c in zip(*(before.clock[user] for user in u), strict=True)] for b, u in users.items()}
    last = {b: {before.stream[user]: before.place[user] for user in u} for b, u in users.items()}  # in launch order
    earlier = dict.fromkeys(users, -1)
    later = dict.fromkeys(users, -1)
    for stream, places in Counter(before.stream.values()).items():
        over = [0] * (places + 1)  # by the place of the last user
        to_come = [0] * (places + 1)  # by how many have finished before the first user starts
        for buffer in users:
            over[last[buffer].get(stream, 0)] |= 1 << buffer
            to_come[finished[buffer][stream]] |= 1 << buffer
        over = list(accumulate(over, or_))
        to_come = list(accumulate(reversed(to_come), or_))[::-1]
        for buffer in users:
            earlier[buffer] &= over[finished[buffer][stream]]
            later[buffer] &= to_come[last[buffer].get(stream, 0)]
    return {buffer: earlier[buffer] | later[buffer] for buffer in users}


def memory_bytes(graph: OperatorGraph, schedule: Schedule) -> int:
    """What a run of the schedule needs for activations and outputs: the sum of each stream's largest need under
    ``plan_releases``, because streams keep blocks of their own, and one arena for all.

    Blocks are as large as PyTorch's allocator makes them; what it loses to fragments is not counted.
    """
    owner: dict[int, int] = {}
    need = [0] * schedule.streams
    most = [0] * schedule.streams
    for step, releases in zip(schedule.steps, plan_releases(graph, schedule), strict=True):
        for buffer in releases:
            need[owner[buffer]] -= rounded(graph.buffers[buffer].size)
        for buffer in graph.operators[step.operator].writes:
            if buffer not in owner and graph.buffers[buffer].kind in {Kind.ACTIVATION, Kind.OUTPUT}:
                owner[buffer] = step.stream
                need[step.stream] += rounded(graph.buffers[buffer].size)
        most[step.stream] = max(most[step.stream], need[step.stream])
    return sum(most) + plan_arena(graph, schedule).size
