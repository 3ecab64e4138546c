"""Which schedule to run: every candidate is captured, all are measured in turns, and the fastest is kept.

A candidate must beat the sequential graph by more than the noise of both; among those as fast as the fastest, the one
that needs least memory wins, which is what makes few streams preferred to many.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from opara_server.engine.capture import capture
from opara_server.engine.device import CapturedGraph, Device
from opara_server.engine.errors import CaptureError
from opara_server.engine.options import AUTO
from opara_server.engine.plan import SEQUENTIAL, Candidate
from opara_server.engine.policies import POLICIES, make_schedule, prioritise
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.schedule import Schedule, compact, fold, memory_bytes
from opara_server.engine.simulate import simulate

log = logging.getLogger(__name__)

LEAST_MARGIN = 0.01  # of the sequential graph's time: what timing one graph twice differs by
AS_FAST = 0.02
MEASURE_SECONDS = 0.3  # per candidate
ROUNDS = (15, 200)


@dataclass(frozen=True)
class Contender:
    """A schedule that may run, and whether its streams were reduced."""

    schedule: Schedule
    compact: bool


@dataclass(frozen=True)
class Choice:
    """``entrants[winner]`` was chosen; ``candidates`` are the entrants' measurements. The first is sequential."""

    profile: Profile
    entrants: tuple[Contender, ...]
    candidates: tuple[Candidate, ...]
    winner: int

    @property
    def schedule(self) -> Schedule:
        return self.entrants[self.winner].schedule

    @property
    def chosen(self) -> Candidate:
        return self.candidates[self.winner]

    @property
    def sequential(self) -> Candidate:
        return self.candidates[0]

    def falling_back(self, reason: str) -> Choice:
        """Sequential instead of the winner, which is refused for ``reason``."""
        marked = tuple(replace(c, rejected=reason) if i == self.winner else c for i, c in enumerate(self.candidates))
        return replace(self, candidates=marked, winner=0)


def contenders(
    program: Program, profile: Profile, policy: str, max_streams: int, priorities: bool = False
) -> list[Contender]:
    """Sequential first, then every different schedule of ``policy`` (AUTO: of all), as it is and compacted.

    ``priorities``: the streams that carry the longest path are urgent.
    """
    sequential = make_schedule(program.graph, profile, SEQUENTIAL)
    found = {sequential.steps: Contender(sequential, compact=False)}
    if program.graph.width > 1:
        for name in POLICIES if policy == AUTO else [policy]:
            schedule = make_schedule(program.graph, profile, name)
            for version, reduced in ((schedule, False), (compact(program.graph, schedule), True)):
                folded = fold(program.graph, version, max_streams)
                if priorities:
                    folded = prioritise(program.graph, profile, folded)
                found.setdefault(folded.steps, Contender(folded, reduced))
    return list(found.values())


def select(program: Program, profile: Profile, device: Device, entrants: Sequence[Contender]) -> Choice:
    """Capture and measure the entrants (sequential first) and choose. Raises CaptureError when sequential fails."""
    graphs: dict[int, CapturedGraph] = {}
    refused: dict[int, str] = {}
    try:
        for number, entrant in enumerate(entrants):
            try:
                graphs[number] = capture(program, entrant.schedule, device)
            except CaptureError as error:
                if number == 0:
                    raise
                log.warning("%s cannot be captured: %s", entrant.schedule.policy, error)
                refused[number] = "cannot be captured"
        times = dict(zip(graphs, measure(list(graphs.values()), device), strict=True))
    finally:
        for graph in graphs.values():
            graph.close()
    candidates = tuple(
        Candidate(
            policy=entrant.schedule.policy,
            compact=entrant.compact,
            streams=entrant.schedule.streams,
            synchronisations=entrant.schedule.synchronisations,
            predicted_us=simulate(program.graph, entrant.schedule, profile, device.latency).makespan_us,
            measured_us=times[number].median if number in times else 0.0,
            peak_bytes=memory_bytes(program.graph, entrant.schedule),
            rejected=refused.get(number, ""),
        )
        for number, entrant in enumerate(entrants)
    )
    return Choice(profile, tuple(entrants), candidates, _winner(candidates, times))


@dataclass(frozen=True, slots=True)
class Timing:
    """``median`` in µs; ``spread``: how uncertain it is, as a share of it: interquartile range / sqrt(count)."""

    median: float
    spread: float


def _winner(candidates: Sequence[Candidate], times: dict[int, Timing]) -> int:
    able = [number for number, candidate in enumerate(candidates) if not candidate.rejected]
    best = min(able, key=lambda number: times[number].median)
    margin = max(LEAST_MARGIN, times[0].spread, times[best].spread)
    faster = [number for number in able if times[number].median < times[0].median * (1 - margin)]
    as_fast = [number for number in faster if times[number].median <= times[best].median * (1 + AS_FAST)]
    if not as_fast:
        return 0
    return min(as_fast, key=lambda number: (candidates[number].peak_bytes, times[number].median))


def measure(graphs: Sequence[CapturedGraph], device: Device) -> list[Timing]:
    """Replay the graphs in turns, A B C A B C, and time each with the device's own clock.

    An untimed replay goes ahead of each timed one: it warms the caches for all alike and keeps a GPU busy while the CPU
    enqueues what is timed.
    """
    samples: list[list[float]] = [[] for _ in graphs]
    for _ in _rounds(graphs, device):
        stamps = []
        for graph in graphs:
            graph.replay()
            start = device.stamp()
            graph.replay()
            stamps.append((start, device.stamp()))
        device.synchronize()
        for times, (start, end) in zip(samples, stamps, strict=True):
            times.append(start.elapsed_us(end))
    return [_timing(times) for times in samples]


def _rounds(graphs: Sequence[CapturedGraph], device: Device) -> Iterator[int]:
    """As many rounds as fit the time per candidate, judged by one that is not counted."""
    device.synchronize()
    begin = device.stamp()
    for graph in graphs:
        graph.replay()
        graph.replay()
    end = device.stamp()
    device.synchronize()
    round_seconds = begin.elapsed_us(end) / 1e6
    least, most = ROUNDS
    yield from range(min(most, max(least, int(MEASURE_SECONDS * len(graphs) / max(round_seconds, 1e-9)))))


def _timing(samples: Sequence[float]) -> Timing:
    first, median, third = statistics.quantiles(samples, n=4)
    return Timing(median, (third - first) / median / len(samples) ** 0.5)
