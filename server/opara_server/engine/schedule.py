"""A schedule: the order in which operators are launched, the stream of each, and what each waits for.

The happens-before relation of a schedule: operators of one stream run in launch order, and an operator starts after
the operators it waits for. A schedule is right when that relation contains every edge of the operator graph. Vector
clocks decide it: clock[s] = how many operators of stream s are known to have finished. No torch in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.matching import chains, maximum_matching

# PyTorch's pool holds 32 streams per device and priority and hands them out round-robin: beyond that, two streams of a
# schedule would be one stream of the device and gain order that nobody asked for.
MAX_STREAMS = 32


class ScheduleError(ValueError):
    """A schedule that would run an operator before something it depends on, or not exactly once."""


@dataclass(frozen=True, slots=True)
class Step:
    """Launch ``operator`` on ``stream`` after the operators ``waits``, all of them on other streams."""

    operator: int
    stream: int
    waits: tuple[int, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """``urgent`` streams get high priority where the device has priorities."""

    policy: str
    steps: tuple[Step, ...]
    urgent: frozenset[int] = frozenset()

    @property
    def streams(self) -> int:
        return max((step.stream for step in self.steps), default=-1) + 1

    @property
    def synchronisations(self) -> int:
        """Waits between streams: each costs one event record and one wait."""
        return sum(len(step.waits) for step in self.steps)

    @property
    def order(self) -> tuple[int, ...]:
        return tuple(step.operator for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        steps = [[step.operator, step.stream, list(step.waits)] for step in self.steps]
        return {"policy": self.policy, "steps": steps, "urgent": sorted(self.urgent)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Schedule:
        """The inverse of ``to_json``. Raises KeyError, TypeError or ValueError on anything else."""
        steps = tuple(Step(operator, stream, tuple(waits)) for operator, stream, waits in data["steps"])
        return cls(data["policy"], steps, frozenset(data["urgent"]))


@dataclass(frozen=True)
class HappensBefore:
    """The happens-before relation of a schedule: per operator its stream, its place in it (from 1) and its clock."""

    stream: dict[int, int]
    place: dict[int, int]
    clock: dict[int, tuple[int, ...]]  # what has finished when the operator starts

    def __call__(self, first: int, second: int) -> bool:
        """Whether ``first`` has finished whenever ``second`` starts."""
        return self.clock[second][self.stream[first]] >= self.place[first]


def happens_before(schedule: Schedule) -> HappensBefore:
    """Raises ScheduleError on a wait for an operator that has not been launched yet: its event would be unrecorded."""
    relation = HappensBefore({}, {}, {})
    latest = [[0] * schedule.streams for _ in range(schedule.streams)]  # per stream the clock after its last operator
    for step in schedule.steps:
        clock = latest[step.stream]
        for awaited in step.waits:
            if awaited not in relation.clock:
                raise ScheduleError(f"operator {step.operator} waits for {awaited}, which is not launched before it")
            _merge(clock, relation.clock[awaited])
            clock[relation.stream[awaited]] = max(clock[relation.stream[awaited]], relation.place[awaited])
        relation.stream[step.operator] = step.stream
        relation.place[step.operator] = clock[step.stream] + 1
        relation.clock[step.operator] = tuple(clock)
        clock[step.stream] += 1
    return relation


def _merge(clock: list[int], other: Sequence[int]) -> None:
    clock[:] = [known if known > finished else finished for known, finished in zip(clock, other, strict=True)]


def check(graph: OperatorGraph, schedule: Schedule) -> None:
    """Raise ScheduleError unless each operator is launched once and every edge happens before its reader."""
    if sorted(schedule.order) != list(range(len(graph))):
        raise ScheduleError(
            f"{schedule.policy}: launches {len(schedule.steps)} operators, not each of {len(graph)} once"
        )
    before = happens_before(schedule)
    for operator, sources in enumerate(graph.predecessors):
        for source in sources:
            if not before(source, operator):
                raise ScheduleError(f"{schedule.policy}: operator {operator} may start before {source} has finished")


def assemble(
    policy: str,
    graph: OperatorGraph,
    order: Iterable[int],
    stream: Sequence[int],
    also: Mapping[int, Sequence[int]] | None = None,
) -> Schedule:
    """Add the waits: one for each predecessor on another stream that no other wait and no earlier operator implies.

    ``order``: every operator once, predecessors first. ``stream[operator]``: any integers, numbered anew from 0 by
    first launch. ``also[operator]``: operators it must happen after besides its predecessors (a barrier).
    Raises ScheduleError when ``order`` is not topological.
    """
    numbered: dict[int, int] = {}
    placed = [(operator, numbered.setdefault(stream[operator], len(numbered))) for operator in order]
    clocks: dict[int, tuple[int, ...]] = {}  # per operator: what has finished once it has
    where: dict[int, tuple[int, int]] = {}
    latest = [[0] * len(numbered) for _ in numbered]
    steps = []
    for operator, own in placed:
        clock = latest[own]
        sources = {*graph.predecessors[operator], *(also or {}).get(operator, ())}
        if missing := sorted(source for source in sources if source not in clocks):
            raise ScheduleError(f"{policy}: operator {operator} is launched before {missing}")
        waits = []
        # Latest first: waiting for the one that saw most makes waits for the others superfluous.
        for source in sorted(sources, key=lambda s: (sum(clocks[s]), s), reverse=True):
            source_stream, place = where[source]
            if clock[source_stream] < place:
                waits.append(source)
                _merge(clock, clocks[source])
        where[operator] = (own, clock[own] + 1)
        clock[own] += 1
        clocks[operator] = tuple(clock)
        steps.append(Step(operator, own, tuple(waits)))
    return Schedule(policy, tuple(steps))


def reuse_streams(ends: Sequence[tuple[int, int]], before: Callable[[int, int], bool]) -> list[int]:
    """For each stream, given as its (first, last) operator, the stream that takes its operators.

    A stream may go on with another's operators when its last one happens ``before`` their first: no order is added.
    Streams are paired by a maximum matching (Nimble's second step), so chains of streams end up on one.
    """
    can_follow = [
        [b for b, (first, _) in enumerate(ends) if b != a and before(last, first)] for a, (_, last) in enumerate(ends)
    ]
    return chains(maximum_matching(can_follow, len(ends)), len(ends))


def compact(graph: OperatorGraph, schedule: Schedule) -> Schedule:
    """The same launch order and the same happens-before relation on fewer streams, where that is possible.

    Fewer streams keep memory of their own (``reuse_streams`` pairs them).
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for step in schedule.steps:
        first.setdefault(step.stream, step.operator)
        last[step.stream] = step.operator
    used = sorted(first)
    owner = reuse_streams([(first[s], last[s]) for s in used], happens_before(schedule))
    return _moved(graph, schedule, dict(zip(used, owner, strict=True)))


def fold(graph: OperatorGraph, schedule: Schedule, limit: int) -> Schedule:
    """At most ``limit`` streams (>= 1): the ones beyond share, round-robin. May add order, never removes any."""
    if limit < 1:
        raise ValueError(f"a schedule needs at least one stream, not {limit}")
    if schedule.streams <= limit:
        return schedule
    return _moved(graph, schedule, {s: s % limit for s in range(schedule.streams)})


def _moved(graph: OperatorGraph, schedule: Schedule, owner: Mapping[int, int]) -> Schedule:
    """Every operator of stream s on stream ``owner[s]``, after all that it waited for: no order is lost."""
    stream = [0] * len(schedule.steps)
    for step in schedule.steps:
        stream[step.operator] = owner[step.stream]
    waits = {step.operator: step.waits for step in schedule.steps}
    moved = assemble(schedule.policy, graph, schedule.order, stream, waits)
    return replace(moved, urgent=urgent_in(schedule, moved))


def urgent_in(old: Schedule, new: Schedule) -> frozenset[int]:
    """The streams of ``new`` that carry an operator from an urgent stream of ``old``."""
    urgent = {step.operator for step in old.steps if step.stream in old.urgent}
    return frozenset(step.stream for step in new.steps if step.operator in urgent)
