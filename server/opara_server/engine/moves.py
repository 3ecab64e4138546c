"""What a local search may change about a schedule: small steps, each of which keeps it right. No torch in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.schedule import Schedule, assemble

NEARBY = 6  # operators of other streams that start about when one does


@dataclass(frozen=True)
class Layout:
    """What makes a schedule: ``order`` of launch, ``stream`` of each operator, and for each ``held``: those that it
    waits for though it does not depend on them."""

    order: tuple[int, ...]
    stream: tuple[int, ...]
    held: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, graph: OperatorGraph, schedule: Schedule) -> Layout:
        stream = [0] * len(graph)
        held: list[tuple[int, ...]] = [()] * len(graph)
        for step in schedule.steps:
            stream[step.operator] = step.stream
            held[step.operator] = tuple(w for w in step.waits if w not in graph.predecessors[step.operator])
        return cls(schedule.order, tuple(stream), tuple(held))

    def schedule(self, graph: OperatorGraph, policy: str) -> Schedule:
        return assemble(policy, graph, self.order, self.stream, dict(enumerate(self.held)))


@dataclass(frozen=True)
class Neighbourhood:
    """The layouts next to a layout, on at most ``streams``. The first ``fixed`` operators of its order stay there."""

    graph: OperatorGraph
    fixed: int
    streams: int

    def propose(self, layout: Layout, starts: Sequence[float], random: Random) -> Layout | None:
        """A random one, None where the draw leads nowhere. ``starts``: of each operator, in µs."""
        if len(layout.order) - self.fixed < 2:
            return None
        operator = layout.order[random.randrange(self.fixed, len(layout.order))]
        move = random.choice(_MOVES)
        return move(self, layout, operator, starts, random)

    def _other(self, layout: Layout, operator: int, starts: Sequence[float], random: Random) -> int | None:
        """An operator of another stream that starts at about the same time."""
        place = layout.order.index(operator)
        around = layout.order[max(0, place - 2 * NEARBY) : place + 2 * NEARBY]
        others = [o for o in around if layout.stream[o] != layout.stream[operator]]
        others.sort(key=lambda o: (abs(starts[o] - starts[operator]), o))
        return random.choice(others[:NEARBY]) if others else None

    def relocate(self, layout: Layout, operator: int, starts: Sequence[float], random: Random) -> Layout | None:
        """The operator, or its chain from there on, goes to another stream."""
        other = self._other(layout, operator, starts, random)
        unused = next((s for s in range(self.streams) if s not in layout.stream), None)
        target = unused if other is None or random.random() < 0.1 else layout.stream[other]
        if target is None or target == layout.stream[operator]:
            return None
        moving = self._chain(layout, operator) if random.random() < 0.5 else [operator]
        stream = list(layout.stream)
        for moved in moving:
            stream[moved] = target
        return replace(layout, stream=tuple(stream))

    def _chain(self, layout: Layout, operator: int) -> list[int]:
        """The operator and those that follow it, each a successor of the one before, on its stream."""
        found = [operator]
        for later in layout.order[layout.order.index(operator) + 1 :]:
            if layout.stream[later] == layout.stream[operator]:
                if found[-1] not in self.graph.predecessors[later]:
                    break
                found.append(later)
        return found

    def insert(self, layout: Layout, operator: int, starts: Sequence[float], random: Random) -> Layout | None:
        """The operator goes right before or after another one, onto its stream."""
        other = self._other(layout, operator, starts, random)
        if other is None:
            return None
        moved = self._moved(layout, operator, layout.order.index(other) + random.randrange(2))
        if moved is None:
            return None
        stream = list(layout.stream)
        stream[operator] = layout.stream[other]
        return replace(moved, stream=tuple(stream))

    def swap(self, layout: Layout, operator: int, _starts: Sequence[float], _random: Random) -> Layout | None:
        """The operator changes places with the one before it on its stream."""
        place = layout.order.index(operator)
        for earlier in range(place - 1, self.fixed - 1, -1):
            if layout.stream[layout.order[earlier]] == layout.stream[operator]:
                return self._moved(layout, operator, earlier)
        return None

    def hold(self, layout: Layout, operator: int, starts: Sequence[float], random: Random) -> Layout | None:
        """The operator is held for another one."""
        other = self._other(layout, operator, starts, random)
        if other is None or other in self.graph.predecessors[operator] or other in layout.held[operator]:
            return None
        place = layout.order.index(other) + 1
        moved = layout if place <= layout.order.index(operator) else self._moved(layout, operator, place)
        if moved is None:
            return None
        held = list(moved.held)
        held[operator] = (*held[operator], other)
        return replace(moved, held=tuple(held))

    def release(self, layout: Layout, operator: int, _starts: Sequence[float], random: Random) -> Layout | None:
        """An operator is held no more; the given one if it is held, else any."""
        if not layout.held[operator]:
            candidates = [o for o in layout.order if layout.held[o]]
            if not candidates:
                return None
            operator = random.choice(candidates)
        held = list(layout.held)
        held[operator] = ()
        return replace(layout, held=tuple(held))

    def cross(self, layout: Layout, operator: int, starts: Sequence[float], random: Random) -> Layout | None:
        """From the operator on, its stream and another one change places."""
        other = self._other(layout, operator, starts, random)
        if other is None:
            return None
        exchanged = {layout.stream[operator]: layout.stream[other], layout.stream[other]: layout.stream[operator]}
        stream = list(layout.stream)
        for later in layout.order[layout.order.index(operator) :]:
            stream[later] = exchanged.get(stream[later], stream[later])
        return replace(layout, stream=tuple(stream))

    def _moved(self, layout: Layout, operator: int, place: int) -> Layout | None:
        """The operator is launched right before the one that is ``place``-th now, None where that cannot be."""
        now = layout.order.index(operator)
        if place < self.fixed:
            return None
        passed = layout.order[place:now] if place <= now else layout.order[now + 1 : place]
        if place <= now:
            ahead = {*self.graph.predecessors[operator], *layout.held[operator]}
            if any(o in ahead for o in passed):
                return None
        elif any(operator in self.graph.predecessors[o] or operator in layout.held[o] for o in passed):
            return None
        order = [o for o in layout.order if o != operator]
        order.insert(place if place <= now else place - 1, operator)
        return replace(layout, order=tuple(order))


_MOVES = (
    Neighbourhood.relocate,
    Neighbourhood.relocate,
    Neighbourhood.insert,
    Neighbourhood.insert,
    Neighbourhood.swap,
    Neighbourhood.hold,
    Neighbourhood.release,
    Neighbourhood.cross,
)
