"""What to run: schedules of every lowering contend, the most promising are captured and measured in turns, one is kept.

A candidate must beat the simplest one, the sequential graph of ATen operators, by more than the noise of both; among
those as fast as the fastest, the one that needs least memory wins, which is what makes few streams preferred to many.
A parallel schedule should need hardly more memory than a sequential one: each that does contends against a lean version
of itself, and must be faster by OVER to win.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from opara_server.engine.capture import capture
from opara_server.engine.choice import Choice, Runnable
from opara_server.engine.device import CapturedGraph, Device
from opara_server.engine.errors import CaptureError
from opara_server.engine.lean import lean
from opara_server.engine.memory import memory_bytes
from opara_server.engine.plan import SEQUENTIAL, Candidate
from opara_server.engine.policies import make_schedule, prioritise
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.schedule import Schedule, compact, fold
from opara_server.engine.simulate import Latency, simulate

log = logging.getLogger(__name__)

LEAST_MARGIN = 0.01  # of the sequential graph's time: what timing one graph twice differs by
AS_FAST = 0.02
LEAN = 2  # per lowering: each takes a second where there are hundreds of operators
LIMIT = 1.1  # times the sequential graph's memory
OVER = 0.05  # by how much one that needs more must be faster than the best that does not
MEASURE_SECONDS = 0.3  # per candidate
SHORTLIST = 5  # per lowering: what the simulator's first places are good for (bench/results/simulator.md)
ALWAYS = {SEQUENTIAL, "opara"}  # what everything is compared with, and the paper's method
BEYOND_BUDGET = "not measured: beyond the tuning budget"
ROUNDS = (15, 200)


@dataclass(frozen=True)
class Contender:
    """A schedule that may run, of a program as profiled, and whether its streams were reduced."""

    program: Program
    profile: Profile
    schedule: Schedule
    compact: bool

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for contenders that are one graph."""
        return id(self.program), self.schedule.steps, self.schedule.urgent

    @cached_property
    def peak_bytes(self) -> int:
        return memory_bytes(self.program.graph, self.schedule)

    @property
    def runnable(self) -> Runnable:
        return Runnable(self.program, self.schedule, self.profile.durations)

    def predicted_us(self, latency: Latency) -> float:
        return simulate(self.program.graph, self.schedule, self.profile, latency).makespan_us


def contenders(
    program: Program, profile: Profile, policies: Iterable[str], max_streams: int, priorities: bool = False
) -> list[Contender]:
    """Sequential first, then the schedule of each policy, and compacted where that makes a difference.

    ``priorities``: the streams that carry the longest path are urgent. Policies may agree on a schedule.
    """
    graph = program.graph
    found = [Contender(program, profile, make_schedule(graph, profile, SEQUENTIAL), compact=False)]
    if program.lowering == "whole":
        return found
    for name in policies:
        if name == SEQUENTIAL:
            continue
        schedule = make_schedule(graph, profile, name)
        versions = [fold(graph, version, max_streams) for version in (schedule, compact(graph, schedule))]
        if priorities and graph.width > 1:
            versions = [prioritise(graph, profile, version) for version in versions]
        found.append(Contender(program, profile, versions[0], compact=False))
        if versions[1] != versions[0]:
            found.append(Contender(program, profile, versions[1], compact=True))
    return found


def shortlist(entrants: Sequence[Contender], latency: Latency, count: int = SHORTLIST) -> list[Contender]:
    """Of one program's contenders the sequential one, the paper's, and the ``count`` that should be fastest, each graph
    once."""
    distinct = {entrant.key: entrant for entrant in reversed(entrants)}
    promising = sorted(distinct.values(), key=lambda entrant: entrant.predicted_us(latency))[:count]
    return [e for e in entrants if e in promising or e.schedule.policy in ALWAYS]


def with_lean(entrants: Sequence[Contender], latency: Latency) -> list[Contender]:
    """And after the most promising of each program that are over their limit the same with so much more order that they
    are not, where that can be had."""
    limits = _limits(entrants)
    over: dict[int, list[int]] = {}
    for number, (entrant, limit) in enumerate(zip(entrants, limits, strict=True)):
        if entrant.peak_bytes > limit:
            over.setdefault(id(entrant.program), []).append(number)
    by_promise = (sorted(numbers, key=lambda n: entrants[n].predicted_us(latency)) for numbers in over.values())
    tried = {number for numbers in by_promise for number in numbers[:LEAN]}
    found = []
    for number, (entrant, limit) in enumerate(zip(entrants, limits, strict=True)):
        found.append(entrant)
        if number in tried and (
            leaner := lean(entrant.program.graph, entrant.schedule, entrant.profile, latency, limit)
        ):
            found.append(replace(entrant, schedule=leaner))
    return found


def _limits(entrants: Sequence[Contender]) -> list[int]:
    """How many bytes each should need at most: LIMIT times what the simplest or its own program's sequential graph
    needs, whichever is more; a program may have merged what others do one after the other."""
    own = {id(e.program): e.peak_bytes for e in entrants if e.schedule.policy == SEQUENTIAL}
    return [int(LIMIT * max(entrants[0].peak_bytes, own.get(id(e.program), 0))) for e in entrants]


def select(entrants: Sequence[Contender], device: Device, budget_s: float = float("inf")) -> Choice:
    """Capture and measure the entrants (the simplest first) and choose. Raises CaptureError when the first fails.

    ``budget_s``: once half of it is gone, no more are captured: those that should be fastest go ahead, and the very
    first of them is captured whatever it takes. Entrants with the same schedule are one graph, measured once.
    """
    begin = time.monotonic()
    predictions = [entrant.predicted_us(device.latency) for entrant in entrants]
    leaders: dict[tuple[Any, ...], int] = {}
    for number, entrant in enumerate(entrants):
        leaders.setdefault(entrant.key, number)
    graphs: dict[int, CapturedGraph] = {}
    refused = dict.fromkeys(leaders.values(), BEYOND_BUDGET)
    try:
        for number in sorted(leaders.values(), key=lambda n: (n > 0, predictions[n])):
            if len(graphs) > 1 and time.monotonic() - begin > budget_s / 2:
                break
            try:
                graphs[number] = capture(entrants[number].program, entrants[number].schedule, device)
            except CaptureError as error:
                if number == 0:
                    raise
                log.warning("%s cannot be captured: %s", entrants[number].schedule.policy, error)
                refused[number] = "cannot be captured"
        left = max(0.0, budget_s - (time.monotonic() - begin))
        timings = measure(list(graphs.values()), device, min(MEASURE_SECONDS, left / len(graphs)))
        times = dict(zip(graphs, timings, strict=True))
    finally:
        for graph in graphs.values():
            graph.close()
    timed = [times.get(leaders[entrant.key]) for entrant in entrants]
    candidates = tuple(
        Candidate(
            lowering=entrant.program.lowering,
            policy=entrant.schedule.policy,
            compact=entrant.compact,
            streams=entrant.schedule.streams,
            synchronisations=entrant.schedule.synchronisations,
            predicted_us=prediction,
            measured_us=timing.median if timing else 0.0,
            peak_bytes=entrant.peak_bytes,
            rejected="" if timing else refused[leaders[entrant.key]],
        )
        for entrant, prediction, timing in zip(entrants, predictions, timed, strict=True)
    )
    over = {n for n, (e, limit) in enumerate(zip(entrants, _limits(entrants), strict=True)) if e.peak_bytes > limit}
    winner, *others = _ranking(candidates, timed, over)
    runnables = tuple((number, entrants[number].runnable) for number in others)
    return Choice(entrants[0].runnable, entrants[winner].runnable, candidates, winner, runnables)


@dataclass(frozen=True, slots=True)
class Timing:
    """``median`` in µs; ``spread``: how uncertain it is, as a share of it: interquartile range / sqrt(count)."""

    median: float
    spread: float


def _ranking(candidates: Sequence[Candidate], timed: Sequence[Timing | None], over: Collection[int]) -> list[int]:
    """The winner, and after it of each other lowering the one that would win without the lowerings before it.

    ``over``: those that need more memory than they should.
    """
    able = {number: timing for number, timing in enumerate(timed) if timing is not None}
    ranking = []
    while winner := _winner(candidates, able, over):
        ranking.append(winner)
        beaten = candidates[winner].lowering
        able = {n: timing for n, timing in able.items() if n == 0 or candidates[n].lowering != beaten}
    return ranking or [0]


def _winner(candidates: Sequence[Candidate], able: Mapping[int, Timing], over: Collection[int]) -> int:
    """Of those that are ``able`` to run; 0, the simplest, where none is faster by more than the noise."""
    best = min(able.values(), key=lambda timing: timing.median)
    margin = max(LEAST_MARGIN, able[0].spread, best.spread)
    faster = [number for number, timing in able.items() if timing.median < able[0].median * (1 - margin)]
    counts_as = {number: able[number].median * (1 + OVER if number in over else 1) for number in faster}
    as_fast = [number for number in faster if counts_as[number] <= min(counts_as.values()) * (1 + AS_FAST)]
    return min(as_fast, key=lambda number: (candidates[number].peak_bytes, able[number].median), default=0)


def measure(graphs: Sequence[CapturedGraph], device: Device, seconds: float = MEASURE_SECONDS) -> list[Timing]:
    """Replay the graphs in turns, A B C A B C, for ``seconds`` each, and time each with the device's own clock.

    An untimed replay goes ahead of each timed one: it warms the caches for all alike. The device is kept busy while the
    CPU enqueues both, which takes longer than small graphs take to run.
    """
    samples: list[list[float]] = [[] for _ in graphs]
    for _ in _rounds(graphs, device, seconds):
        stamps = []
        for graph in graphs:
            device.occupy()
            graph.replay()
            start = device.stamp()
            graph.replay()
            stamps.append((start, device.stamp()))
        device.synchronize()
        for times, (start, end) in zip(samples, stamps, strict=True):
            times.append(start.elapsed_us(end))
    return [_timing(times) for times in samples]


def _rounds(graphs: Sequence[CapturedGraph], device: Device, seconds: float) -> Iterator[int]:
    """As many rounds as fit the time per candidate, judged by one that is not counted."""
    device.synchronize()
    begin = device.stamp()
    for graph in graphs:
        device.occupy()
        graph.replay()
        graph.replay()
    end = device.stamp()
    device.synchronize()
    round_seconds = begin.elapsed_us(end) / 1e6
    least, most = ROUNDS
    yield from range(min(most, max(least, int(seconds * len(graphs) / max(round_seconds, 1e-9)))))


def _timing(samples: Sequence[float]) -> Timing:
    first, median, third = statistics.quantiles(samples, n=4)
    return Timing(median, (third - first) / median / len(samples) ** 0.5)
