"""Random valid schedules: what a prediction is judged on, since policies alone are too few and too much alike.

Drawn without a look at the profile and without pruning, so they hold schedules that no policy would make. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from random import Random

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.schedule import MAX_STREAMS, Schedule, assemble

DRAWS_PER_SCHEDULE = 20


def random_schedules(graph: OperatorGraph, count: int, seed: int, limit: int = MAX_STREAMS) -> list[Schedule]:
    """``count`` different ones on at most ``limit`` streams (>= 1) each; the same ones for the same arguments.

    Fewer where the graph has too few (a chain has one) or they are too hard to come by.
    """
    random = Random(seed)
    found: dict[object, Schedule] = {}
    for _ in range(count * DRAWS_PER_SCHEDULE):
        if len(found) == count:
            break
        schedule = random_schedule(graph, random, limit)
        found.setdefault(schedule.steps, schedule)
    return list(found.values())


def random_schedule(graph: OperatorGraph, random: Random, limit: int = MAX_STREAMS) -> Schedule:
    """A random topological order on a random number of streams, which are given out with sense, at random, or now one
    way and now the other: else schedules of a narrow graph would be either nearly as fast as can be or far from it.

    The number is log-uniform, as 2 against 4 streams matters as much as 16 against 32, and from 2 where the limit
    allows: on one stream all orders take equally long.
    """
    order = topological_order(graph, random)
    streams = round(2 ** random.uniform(min(1.0, log2(limit)), log2(limit)))
    sense = random.choice((0.0, random.random(), 1.0))
    return assemble("random", graph, order, _given_out(graph, order, streams, sense, random))


def topological_order(graph: OperatorGraph, random: Random) -> list[int]:
    """Again and again any of the operators whose predecessors are all in it."""
    missing = [len(sources) for sources in graph.predecessors]
    ready = [operator for operator, count in enumerate(missing) if count == 0]
    order = []
    while ready:
        place = random.randrange(len(ready))
        ready[place], ready[-1] = ready[-1], ready[place]
        operator = ready.pop()
        order.append(operator)
        for successor in graph.successors[operator]:
            missing[successor] -= 1
            if missing[successor] == 0:
                ready.append(successor)
    return order


def _given_out(graph: OperatorGraph, order: Sequence[int], streams: int, sense: float, random: Random) -> list[int]:
    """Per operator its stream. ``sense``: how probable it is that one gets the stream of a predecessor that is the last
    there so far, or where there is none the stream that was given out longest ago, and not just any."""
    stream = [0] * len(graph)
    last = dict.fromkeys(range(streams), -1)  # per stream its last operator; the stream given out longest ago first
    for operator in order:
        after = [s for s, end in last.items() if end in graph.predecessors[operator]]
        if random.random() < sense:
            chosen = random.choice(after) if after else next(iter(last))
        else:
            chosen = random.randrange(streams)
        stream[operator] = chosen
        del last[chosen]
        last[chosen] = operator
    return stream
