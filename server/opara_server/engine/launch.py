"""A schedule made ready for a device: per step what to wait for, what to free and whether somebody waits for it; and
where explicit buffers lie.

No torch in here.
"""

from __future__ import annotations

from dataclasses import dataclass

from opara_server.engine.arena import NO_ARENA, Arena
from opara_server.engine.graph import OperatorGraph
from opara_server.engine.memory import plan_arena, plan_releases
from opara_server.engine.schedule import Schedule, check, happens_before


@dataclass(frozen=True, slots=True)
class Launch:
    """On ``stream``: wait for the operators ``waits``, free the buffers ``frees``, run ``operator``, and record its
    event if ``awaited``. ``fork``: the stream's first launch, with nothing to wait for but the beginning."""

    operator: int
    stream: int
    waits: tuple[int, ...]
    frees: tuple[int, ...]
    awaited: bool
    fork: bool


@dataclass(frozen=True)
class LaunchList:
    """``joins``: the operators whose end is the end of the run, as seen from stream 0."""

    launches: tuple[Launch, ...]
    streams: int
    joins: tuple[int, ...]
    urgent: frozenset[int]
    arena: Arena = NO_ARENA


def launch_list(graph: OperatorGraph, schedule: Schedule) -> LaunchList:
    """Raises ScheduleError unless the schedule is right for the graph."""
    check(graph, schedule)
    joins = _joins(schedule)
    awaited = {*joins, *(wait for step in schedule.steps for wait in step.waits)}
    started = {0}
    launches = []
    for step, frees in zip(schedule.steps, plan_releases(graph, schedule), strict=True):
        fork = step.stream not in started and not step.waits
        started.add(step.stream)
        launches.append(Launch(step.operator, step.stream, step.waits, frees, step.operator in awaited, fork))
    arena = plan_arena(graph, schedule)
    return LaunchList(tuple(launches), max(schedule.streams, 1), joins, schedule.urgent, arena)


def _joins(schedule: Schedule) -> tuple[int, ...]:
    """The last operators of the streams other than 0, less those that happen before another stream's last one."""
    before = happens_before(schedule)
    last = {step.stream: step.operator for step in schedule.steps}
    return tuple(
        operator
        for stream, operator in last.items()
        if stream != 0 and not any(before(operator, other) for other in last.values() if other != operator)
    )
