"""List scheduling that minds the device's room: the parallel schedule generation scheme of resource-constrained project
scheduling (Kolisch, European Journal of Operational Research 90, 1996), longest remaining path first.

A device that is full runs everything slower, so what is started on top of it holds up the longest path. Here an
operator with time to spare waits for the one whose end makes room for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.policies.critical_path import costs_us
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import MAX_STREAMS, Schedule, assemble
from opara_server.engine.simulate import Latency


def packed(graph: OperatorGraph, profile: Profile, streams: int = MAX_STREAMS) -> Schedule:
    """At most ``streams`` of them (>= 1, else ValueError), opened only while all others are busy."""
    if streams < 1:
        raise ValueError(f"packed needs at least one stream, not {streams}")
    packing = _Packing(graph, profile, streams)
    packing.run()
    return assemble("packed", graph, packing.order, packing.stream, packing.waits)


@dataclass
class _Packing:
    """One run against the clock, in µs. An operator runs until what follows it could start."""

    graph: OperatorGraph
    profile: Profile
    streams: int
    order: list[int] = field(default_factory=list)
    waits: dict[int, tuple[int, ...]] = field(default_factory=dict)  # of those that had to wait for room

    def __post_init__(self) -> None:
        self.costs = costs_us(self.profile)
        self.wait_us = Latency().crossing_us
        self.tails = self.graph.tails(self.costs)
        self.stream = [0] * len(self.graph)
        self.last: list[int] = []  # per stream
        self.ready: list[tuple[float, int]] = []  # heap: the longest remaining path first
        self.running: list[tuple[float, int]] = []  # heap: by end
        self.ended: dict[int, float] = {}
        self.now = 0.0

    def run(self) -> None:
        missing = [len(sources) for sources in self.graph.predecessors]
        self.ready = [(-self.tails[operator], operator) for operator, count in enumerate(missing) if count == 0]
        heapify(self.ready)
        while self.ready or self.running:
            self._start_what_fits()
            self.now, operator = heappop(self.running)
            self.ended[operator] = self.now
            for successor in self.graph.successors[operator]:
                missing[successor] -= 1
                if missing[successor] == 0:
                    heappush(self.ready, (-self.tails[successor], successor))

    def _start_what_fits(self) -> None:
        postponed = []
        while self.ready and len(self.running) < self.streams:
            rank, operator = heappop(self.ready)
            if self._had_better_wait(operator):
                postponed.append((rank, operator))
                self.waits[operator] = ()
            else:
                self._start(operator)
        for item in postponed:
            heappush(self.ready, item)

    def _had_better_wait(self, operator: int) -> bool:
        """Whether it would overfill the device by more than it would leave empty, and has the time."""
        if not self.running:
            return False
        used = sum(self.profile.operators[o].footprint for _, o in self.running)
        excess = used + self.profile.operators[operator].footprint - 1.0
        remaining = max(end - self.now + self.tails[o] - self.costs[o] for end, o in self.running)
        return excess > max(0.0, 1.0 - used) and self.running[0][0] - self.now + self.tails[operator] <= remaining

    def _start(self, operator: int) -> None:
        """On the stream that a predecessor has just left, which saves the longest wait, else on the one left last."""
        idle = [s for s, o in enumerate(self.last) if o in self.ended]
        left = [s for s in idle if self.last[s] in self.graph.predecessors[operator]]
        chosen = max(left or idle, key=lambda s: self.ended[self.last[s]], default=len(self.last))
        if operator in self.waits:
            self.waits[operator] = (next(reversed(self.ended)),)
        sources = (*self.graph.predecessors[operator], *self.waits.get(operator, ()))
        arrivals = [self.ended[source] + self.wait_us for source in sources if self.stream[source] != chosen]
        self.last[chosen : chosen + 1] = [operator]
        self.stream[operator] = chosen
        self.order.append(operator)
        heappush(self.running, (max([self.now, *arrivals]) + self.costs[operator], operator))
