"""A schedule: the order in which operators are launched, the stream of each, and what each waits for.

The happens-before relation of a schedule: operators of one stream run in launch order, and an operator starts after
the operators it waits for. A schedule is right when that relation contains every edge of the operator graph. Vector
clocks decide it: clock[s] = how many operators of stream s are known to have finished. No torch in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from opara_server.engine.graph import Kind, OperatorGraph
from opara_server.engine.matching import maximum_matching


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
    for stream, finished in enumerate(other):
        if finished > clock[stream]:
            clock[stream] = finished


def check(graph: OperatorGraph, schedule: Schedule) -> None:
    """Raise ScheduleError unless each operator is launched once and every edge happens before its reader."""
    if sorted(schedule.order) != list(range(len(graph))):
        raise ScheduleError(f"{schedule.policy}: launches {len(schedule.steps)} operators, not each of {len(graph)} once")
    before = happens_before(schedule)
    for operator, sources in enumerate(graph.predecessors):
        for source in sources:
            if not before(source, operator):
                raise ScheduleError(f"{schedule.policy}: operator {operator} may start before {source} has finished")


def assemble(policy: str, graph: OperatorGraph, order: Iterable[int], stream: Sequence[int]) -> Schedule:
    """Add the waits: one for each predecessor on another stream that no other wait and no earlier operator implies.

    ``order``: every operator once, predecessors first. ``stream[operator]``: any integers, numbered anew from 0 by
    first launch. Raises ScheduleError when ``order`` is not topological.
    """
    numbered: dict[int, int] = {}
    placed = [(operator, numbered.setdefault(stream[operator], len(numbered))) for operator in order]
    clocks: dict[int, tuple[int, ...]] = {}  # per operator: what has finished once it has
    where: dict[int, tuple[int, int]] = {}
    latest = [[0] * len(numbered) for _ in numbered]
    steps = []
    for operator, own in placed:
        clock = latest[own]
        missing = [source for source in graph.predecessors[operator] if source not in clocks]
        if missing:
            raise ScheduleError(f"{policy}: operator {operator} is launched before {missing}")
        # Latest first: waiting for the one that saw most makes waits for the others superfluous.
        sources = sorted(graph.predecessors[operator], key=lambda s: sum(clocks[s]), reverse=True)
        waits = []
        for source in sources:
            source_stream, place = where[source]
            if clock[source_stream] < place:
                waits.append(source)
                _merge(clock, clocks[source])
        where[operator] = (own, clock[own] + 1)
        clock[own] += 1
        clocks[operator] = tuple(clock)
        steps.append(Step(operator, own, tuple(waits)))
    return Schedule(policy, tuple(steps))


def compact(graph: OperatorGraph, schedule: Schedule) -> Schedule:
    """The same launch order on as few streams as its happens-before relation needs.

    A stream may go on with another stream's operators when its last operator happens before their first: the order
    stays as it was, and fewer streams keep memory of their own. Streams are paired by a maximum matching (as in
    Nimble's second step), so chains of streams end up on one.
    """
    before = happens_before(schedule)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for step in schedule.steps:
        first.setdefault(step.stream, step.operator)
        last[step.stream] = step.operator
    count = schedule.streams
    can_follow = [[b for b in range(count) if b != a and before(last[a], first[b])] for a in range(count)]
    follows = maximum_matching(can_follow, count)
    heads = set(range(count)) - set(follows.values())
    owner = {}
    for head in heads:
        link: int | None = head
        while link is not None:
            owner[link] = head
            link = follows.get(link)
    stream = _by_operator(schedule, owner)
    compacted = assemble(schedule.policy, graph, schedule.order, stream)
    return replace(compacted, urgent=_renumbered(schedule, compacted))


def fold(graph: OperatorGraph, schedule: Schedule, limit: int) -> Schedule:
    """At most ``limit`` streams: the ones beyond share, round-robin. Adds order between operators, never removes any."""
    if schedule.streams <= limit:
        return schedule
    stream = _by_operator(schedule, {s: s % limit for s in range(schedule.streams)})
    folded = assemble(schedule.policy, graph, schedule.order, stream)
    return replace(folded, urgent=_renumbered(schedule, folded))


def _by_operator(schedule: Schedule, owner: dict[int, int]) -> list[int]:
    stream = [0] * len(schedule.steps)
    for step in schedule.steps:
        stream[step.operator] = owner[step.stream]
    return stream


def _renumbered(old: Schedule, new: Schedule) -> frozenset[int]:
    """The streams of ``new`` that carry an operator from an urgent stream of ``old``."""
    urgent = {step.operator for step in old.steps if step.stream in old.urgent}
    return frozenset(step.stream for step in new.steps if step.operator in urgent)


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
    for position, step in enumerate(schedule.steps):
        on_stream.setdefault(step.stream, []).append(position)
    releases: list[list[int]] = [[] for _ in schedule.steps]
    for buffer, stream in owner.items():
        if graph.buffers[buffer].kind is not Kind.ACTIVATION:
            continue
        for position in on_stream[stream]:
            operator = schedule.steps[position].operator
            if operator not in users[buffer] and all(before(user, operator) for user in users[buffer]):
                releases[position].append(buffer)
                break
    return tuple(tuple(r) for r in releases)
