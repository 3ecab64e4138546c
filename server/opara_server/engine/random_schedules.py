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
    """A random topological order on a random number of streams, which are given out at random or with sense.

    The number is log-uniform, as 2 against 4 streams matters as much as 16 against 32, and from 2 where the limit
    allows: on one stream all orders take equally long.
    """
    order = topological_order(graph, random)
    streams = round(2 ** random.uniform(min(1.0, log2(limit)), log2(limit)))
    given_out = random.choice([_anyhow, _sensibly])(graph, order, streams, random)
    return assemble("random", graph, order, given_out)


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


def _anyhow(_graph: OperatorGraph, order: Sequence[int], streams: int, random: Random) -> list[int]:
    return [random.randrange(streams) for _ in order]


def _sensibly(graph: OperatorGraph, order: Sequence[int], streams: int, random: Random) -> list[int]:
    """After a predecessor that is the last of its stream so far, else on the stream that was given out longest ago."""
    stream = [0] * len(graph)
    last = dict.fromkeys(range(streams), -1)  # per stream its last operator; the stream given out longest ago first
    for operator in order:
        after = [s for s, end in last.items() if end in graph.predecessors[operator]]
        chosen = stream[operator] = random.choice(after) if after else next(iter(last))
        del last[chosen]
        last[chosen] = operator
    return stream
