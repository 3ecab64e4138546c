"""List scheduling on k streams, longest remaining path first (Graham 1966; HEFT's rank, Topcuoglu 2002)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from heapq import heappop, heappush

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import MAX_STREAMS, Schedule, assemble
from opara_server.engine.simulate import Latency


def critical_path(graph: OperatorGraph, profile: Profile, streams: int = MAX_STREAMS) -> Schedule:
    """At most ``streams`` of them (>= 1, else ValueError), and never more than the graph is wide.

    A stream is opened only while all others are busy; operators that run at once are independent. So the default needs
    no tuning: it opens as many streams as are ever busy together, up to what the device has.
    """
    if streams < 1:
        raise ValueError(f"critical_path needs at least one stream, not {streams}")
    order, stream = place(graph, costs_us(profile), streams)
    return assemble("critical_path", graph, order, stream)


def place(graph: OperatorGraph, costs: Sequence[float], limit: int) -> tuple[list[int], list[int]]:
    """Launch order and stream of each operator when each takes ``costs[operator]`` µs and ``limit`` may run at once."""
    tails = graph.tails(costs)
    missing = [len(sources) for sources in graph.predecessors]
    arriving = [(0.0, operator) for operator, count in enumerate(missing) if count == 0]  # heap: when it may start
    ready: list[tuple[float, int]] = []  # heap: the longest remaining path first, ties in program order
    finish = [0.0] * len(graph)
    order: list[int] = []
    stream = [0] * len(graph)
    last: list[int] = []  # per stream the operator placed last
    now = 0.0
    while arriving or ready:
        if not ready:
            now = max(now, arriving[0][0])
        if len(last) == limit:
            now = max(now, min(finish[operator] for operator in last))
        while arriving and arriving[0][0] <= now:
            _, operator = heappop(arriving)
            heappush(ready, (-tails[operator], operator))
        _, operator = heappop(ready)
        chosen = stream[operator] = _idle_stream(graph.predecessors[operator], last, finish, now)
        if chosen == len(last):
            last.append(operator)
        last[chosen] = operator
        finish[operator] = now + costs[operator]
        order.append(operator)
        for successor in graph.successors[operator]:
            missing[successor] -= 1
            if missing[successor] == 0:
                heappush(arriving, (max(finish[s] for s in graph.predecessors[successor]), successor))
    return order, stream


def _idle_stream(sources: Collection[int], last: Sequence[int], finish: Sequence[float], now: float) -> int:
    """The stream that a predecessor has just left (the latest of them: that saves a wait), else the one idle longest,
    whose operators are the least likely to be late after all, else a new one."""
    idle = [s for s, operator in enumerate(last) if finish[operator] <= now]
    left = [s for s in idle if last[s] in sources]
    if left:
        return max(left, key=lambda s: finish[last[s]])
    return min(idle, key=lambda s: finish[last[s]], default=len(last))


def prioritise(graph: OperatorGraph, profile: Profile, schedule: Schedule) -> Schedule:
    """The same schedule with the streams that carry the graph's longest path marked urgent, named "urgent(POLICY)"."""
    tails = graph.tails(costs_us(profile))
    path = set()
    ahead: Sequence[int] = range(len(graph))
    while ahead:
        operator = max(ahead, key=lambda o: tails[o])
        path.add(operator)
        ahead = graph.successors[operator]
    urgent = frozenset(step.stream for step in schedule.steps if step.operator in path)
    return replace(schedule, policy=f"urgent({schedule.policy})", urgent=urgent)


def costs_us(profile: Profile) -> list[float]:
    """µs per operator until what depends on it can start: many small kernels in a row cost more than they run."""
    hop = Latency().dependency_us
    return [duration + hop for duration in profile.durations]
