"""What the launch order alone is worth (the paper's Fig. 2): one assignment to streams, launched in many orders.

Streams are Algorithm 1's, so that each is a path of the operator graph: no order changes what runs on a stream, nor
what waits for what. Only who is launched first differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from random import Random
from typing import Any

from bench.subject import Subject
from bench.timing import device_times
from opara_server.engine.capture import capture
from opara_server.engine.graph import OperatorGraph
from opara_server.engine.policies.opara import allocate_streams, launch_order
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import Schedule, assemble

RANDOM_ORDERS = 8
SHARE = 3  # of the time for timing a system, an order takes one in so many


@dataclass(frozen=True)
class LaunchOrder:
    name: str
    median_us: float
    spread: float


def topological(graph: OperatorGraph, urgency: Callable[[int], Any]) -> list[int]:
    """Of the operators that are ready, always the one with the least urgency value."""
    missing = [len(sources) for sources in graph.predecessors]
    ready: list[tuple[Any, int]] = []
    for operator, count in enumerate(missing):
        if count == 0:
            heappush(ready, (urgency(operator), operator))
    order = []
    while ready:
        _, operator = heappop(ready)
        order.append(operator)
        for successor in graph.successors[operator]:
            missing[successor] -= 1
            if missing[successor] == 0:
                heappush(ready, (urgency(successor), successor))
    return order


def depth_first(graph: OperatorGraph) -> list[int]:
    """A branch is launched to its end before the next one is begun."""
    missing = [len(sources) for sources in graph.predecessors]
    stack = [operator for operator, count in reversed(list(enumerate(missing))) if count == 0]
    order = []
    while stack:
        operator = stack.pop()
        order.append(operator)
        for successor in reversed(graph.successors[operator]):
            missing[successor] -= 1
            if missing[successor] == 0:
                stack.append(successor)
    return order


def orders(graph: OperatorGraph, profile: Profile, random_orders: int = RANDOM_ORDERS) -> dict[str, list[int]]:
    """By name, each topological."""
    tails = graph.tails(profile.durations)
    demand = [operator.demand for operator in profile.operators]
    depth = [0] * len(graph)
    for operator, sources in enumerate(graph.predecessors):
        depth[operator] = 1 + max((depth[source] for source in sources), default=-1)
    found = {
        "Algorithm 2": launch_order(graph, profile),
        "program": list(range(len(graph))),
        "depth first": depth_first(graph),
        "breadth first": topological(graph, lambda operator: depth[operator]),
        "longest path first": topological(graph, lambda operator: -tails[operator]),
        "largest demand first": topological(graph, lambda operator: -demand[operator]),
    }
    return found | {f"random {seed}": _at_random(graph, seed) for seed in range(random_orders)}


def _at_random(graph: OperatorGraph, seed: int) -> list[int]:
    random = Random(seed)
    return topological(graph, lambda _operator: random.random())


def schedules(graph: OperatorGraph, named: dict[str, list[int]], max_streams: int) -> list[Schedule]:
    """All with the same operators on the same streams."""
    stream = [number % max_streams for number in allocate_streams(graph)]
    return [assemble(name, graph, order, stream) for name, order in named.items()]


def study(subject: Subject) -> list[dict[str, Any]]:
    """Measured in turns; fastest first."""
    program, profile = subject.aten.program, subject.aten.profile
    tried = schedules(program.graph, orders(program.graph, profile), subject.device.max_streams)
    graphs = [capture(program, schedule, subject.device) for schedule in tried]
    times = device_times(graphs, subject.device, subject.seconds / SHARE)
    found: Iterable[LaunchOrder] = (
        LaunchOrder(schedule.policy, time.median_us, time.spread) for schedule, time in zip(tried, times, strict=True)
    )
    return [asdict(order) for order in sorted(found, key=lambda order: order.median_us)]
