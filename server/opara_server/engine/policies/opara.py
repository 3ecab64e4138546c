"""The paper's policy: streams by Algorithm 1, launch order by Algorithm 2 (Opara, arXiv 2312.10351v2, section III)."""

from __future__ import annotations

from heapq import heappop, heappush

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import Schedule, assemble


def opara(graph: OperatorGraph, profile: Profile) -> Schedule:
    return assemble("opara", graph, launch_order(graph, profile), allocate_streams(graph))


def allocate_streams(graph: OperatorGraph) -> list[int]:
    """Algorithm 1: the stream of each operator, so that every stream is a path of the graph. O(operators + edges).

    An operator goes on with the stream of its first predecessor that no other operator goes on with, else it opens one.
    """
    stream: list[int] = []
    handed_on = [False] * len(graph)
    opened = 0
    for sources in graph.predecessors:
        for source in sources:
            if not handed_on[source]:
                handed_on[source] = True
                stream.append(stream[source])
                break
        else:
            stream.append(opened)
            opened += 1
    return stream


def launch_order(graph: OperatorGraph, profile: Profile) -> list[int]:
    """Algorithm 2: a topological order that takes memory-bound and compute-bound operators in turn.

    Of the ready operators of a class, the one with the smallest resource demand goes first (kernels are not preempted:
    a large one would block the small ones), ties in program order. The first turn is the compute-bound ones', as in the
    paper's prototype. O(operators * log(operators) + edges).
    """
    missing = [len(sources) for sources in graph.predecessors]
    ready: tuple[list[tuple[float, int]], list[tuple[float, int]]] = ([], [])  # heaps: memory-bound, compute-bound

    def release(operator: int) -> None:
        heappush(ready[profile.compute_bound(operator)], (profile.operators[operator].demand, operator))

    for operator, count in enumerate(missing):
        if count == 0:
            release(operator)
    order: list[int] = []
    turn = True
    while ready[0] or ready[1]:
        turn = turn if ready[turn] else not turn
        _, operator = heappop(ready[turn])
        order.append(operator)
        turn = not turn
        for successor in graph.successors[operator]:
            missing[successor] -= 1
            if missing[successor] == 0:
                release(successor)
    return order
