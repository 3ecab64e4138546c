"""What to run: the most promising schedules of every lowering are captured and measured in turns, one is kept.

A candidate must beat the simplest one, the sequential graph of ATen operators, by more than the noise of both; among
those as fast as the fastest, the one that needs least memory wins, which is what makes few streams preferred to many.
A parallel schedule should need hardly more memory than a sequential one: one that does must be faster by OVER to win.
One with urgent streams must be faster by AS_FAST than the same without.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opara_server.engine.capture import capture
from opara_server.engine.choice import Choice
from opara_server.engine.contenders import Contender, limits_bytes
from opara_server.engine.device import CapturedGraph, Device
from opara_server.engine.errors import CaptureError
from opara_server.engine.plan import BEYOND_BUDGET, Candidate
from opara_server.engine.steps import Steps, at_once

log = logging.getLogger(__name__)

LEAST_MARGIN = 0.01  # of the sequential graph's time: what timing one graph twice differs by
AS_FAST = 0.02
OVER = 0.05  # by how much one that needs more must be faster than the best that does not
MEASURE_SECONDS = 0.3  # per candidate
ROUNDS = (15, 200)


def select(entrants: Sequence[Contender], device: Device, budget_s: float = float("inf")) -> Choice:
    """Capture and measure the entrants (the simplest first) and choose. Raises CaptureError when the first fails.

    ``budget_s``: once half of it is gone, no more are captured: those that should be fastest go ahead, urgent ones come
    last, and the very first of all is captured whatever it takes. Entrants with the same schedule are one graph,
    measured once.
    """
    begin = time.monotonic()
    urgent = {number for number, entrant in enumerate(entrants) if entrant.schedule.urgent}
    predictions = [entrant.predicted_us(device.latency) for entrant in entrants]
    leaders: dict[tuple[Any, ...], int] = {}
    for number, entrant in enumerate(entrants):
        leaders.setdefault(entrant.key, number)
    graphs: dict[int, CapturedGraph] = {}
    refused = dict.fromkeys(leaders.values(), BEYOND_BUDGET)
    try:
        for number in sorted(leaders.values(), key=lambda n: (n > 0, n in urgent, predictions[n])):
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
    limits = limits_bytes(entrants)
    over = {number for number, entrant in enumerate(entrants) if entrant.peak_bytes > limits[number]}
    graph_of = [leaders[entrant.key] for entrant in entrants]
    winner, *others = _ranking(candidates, timed, graph_of, over, urgent)
    runnables = tuple((number, entrants[number].runnable) for number in others)
    return Choice(entrants[0].runnable, entrants[winner].runnable, candidates, winner, runnables)


@dataclass(frozen=True, slots=True)
class Timing:
    """``median`` in µs; ``spread``: how uncertain it is, as a share of it: interquartile range / sqrt(count)."""

    median: float
    spread: float


def _ranking(
    candidates: Sequence[Candidate],
    timed: Sequence[Timing | None],
    graph_of: Sequence[int],
    over: Collection[int],
    urgent: Collection[int],
) -> list[int]:
    """The winner, and after it those that would win without the ones before them: of each other lowering one, of the
    winner's own one more, which is another graph of another policy. Most often a refusal is the lowering's fault, yet
    where there is but one a single bad schedule must not leave the model with the sequential graph.

    ``graph_of``: which graph each is. ``over``: those that need more memory than they should. ``urgent``: those with
    urgent streams.
    """
    able = {number: timing for number, timing in enumerate(timed) if timing is not None}
    ranking: list[int] = []
    while winner := _winner(candidates, able, over, urgent):
        beaten = {n for n in able if n and candidates[n].lowering == candidates[winner].lowering}
        if not ranking:
            policy, graph = candidates[winner].policy, graph_of[winner]
            beaten = {n for n in beaten if candidates[n].policy == policy or graph_of[n] == graph}
        able = {n: timing for n, timing in able.items() if n not in beaten}
        ranking.append(winner)
    return ranking or [0]


def _winner(
    candidates: Sequence[Candidate], able: Mapping[int, Timing], over: Collection[int], urgent: Collection[int]
) -> int:
    """Of those that are ``able`` to run; 0, the simplest, where none is faster by more than the noise."""
    best = min(able.values(), key=lambda timing: timing.median)
    margin = max(LEAST_MARGIN, able[0].spread, best.spread)
    faster = [number for number, timing in able.items() if timing.median < able[0].median * (1 - margin)]
    counts_as = {number: able[number].median * (1 + OVER if number in over else 1) for number in faster}
    as_fast = [number for number in faster if counts_as[number] <= min(counts_as.values()) * (1 + AS_FAST)]
    return min(as_fast, key=lambda n: (candidates[n].peak_bytes, n in urgent, able[n].median), default=0)


def measure(graphs: Sequence[CapturedGraph], device: Device, seconds: float = MEASURE_SECONDS) -> list[Timing]:
    """``measuring`` without a pause."""
    return at_once(measuring(graphs, device, seconds))


def measuring(graphs: Sequence[CapturedGraph], device: Device, seconds: float) -> Steps[list[Timing]]:
    """Replay the graphs in turns, A B C A B C, for ``seconds`` each, and time each with the device's own clock. A step
    is one round of turns.

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
        yield
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
