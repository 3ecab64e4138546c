"""HEFT without insertion (Topcuoglu, Hariri and Wu, IEEE TPDS 13, 2002): streams are its processors, all alike.

Operators in the order of their longest remaining paths, each on the stream where it would end first. For processors
that are alike, PEFT's look-ahead (Arabnejad and Barbosa, IEEE TPDS 25, 2014) is the longest remaining path as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.policies.critical_path import costs_us
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import MAX_STREAMS, Schedule, assemble
from opara_server.engine.simulate import Latency


def heft(graph: OperatorGraph, profile: Profile, streams: int = MAX_STREAMS) -> Schedule:
    """At most ``streams`` of them (>= 1, else ValueError)."""
    if streams < 1:
        raise ValueError(f"heft needs at least one stream, not {streams}")
    costs = costs_us(profile)
    order, stream = place(graph, costs, Latency().crossing_us, streams)
    return assemble("heft", graph, order, stream)


def place(graph: OperatorGraph, costs: Sequence[float], wait_us: float, limit: int) -> tuple[list[int], list[int]]:
    """Launch order and stream of each operator when each takes ``costs[operator]`` µs until what follows it can start,
    and ``wait_us`` more where that is on another stream.

    Of streams where it would end equally early: the one with the fewest waits, which keeps chains together; then the
    one that would be idle for the shortest time, which leaves the others to whoever can use them earlier.
    """
    tails = graph.tails(costs)
    order = sorted(range(len(graph)), key=lambda operator: (-tails[operator], operator))
    finish = [0.0] * len(graph)
    stream = [0] * len(graph)
    free: list[float] = []  # per stream since when
    for operator in order:
        options = [
            _option(graph.predecessors[operator], chosen, free, finish, stream, wait_us)
            for chosen in range(min(len(free) + 1, limit))
        ]
        start, *_, chosen = min(options)
        finish[operator] = start + costs[operator]
        stream[operator] = chosen
        free[chosen : chosen + 1] = [finish[operator]]
    return order, stream


def _option(
    sources: Sequence[int],
    chosen: int,
    free: Sequence[float],
    finish: Sequence[float],
    stream: Sequence[int],
    wait_us: float,
) -> tuple[float, int, float, int]:
    """Start on stream ``chosen``, waits, idle time before it, and the stream: the least is the best."""
    since = free[chosen] if chosen < len(free) else 0.0
    arrivals = [finish[source] + (wait_us if stream[source] != chosen else 0.0) for source in sources]
    start = max([since, *arrivals])
    return start, sum(stream[source] != chosen for source in sources), start - since, chosen
