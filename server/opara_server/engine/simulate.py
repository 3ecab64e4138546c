"""How long a schedule should take: a discrete-event model of a device that shares itself among running operators.

No torch in here; a prediction from the profile, never a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import Schedule, ScheduleError


@dataclass(frozen=True, slots=True)
class Latency:
    """``dependency_us``: from the end of an operator to the start of the next one that depends on it or follows it on
    its stream; the default is what dependent kernels of a CUDA Graph were seen to take on an H200. ``wait_us``: what it
    takes in addition where the two are on different streams."""

    dependency_us: float = 1.2
    wait_us: float = 0.0


@dataclass(frozen=True, slots=True)
class Simulation:
    """``intervals[operator]`` = (start, end) in µs from the start of the run."""

    makespan_us: float
    intervals: tuple[tuple[float, float], ...]


def simulate(graph: OperatorGraph, schedule: Schedule, profile: Profile, latency: Latency) -> Simulation:
    """Run ``schedule`` in the model; exact up to rounding. Raises ScheduleError if an operator could never start.

    An operator starts ``latency`` after the last of its waits and of its stream's previous operator.
    While the footprints of the running ones add up to more than 1, all of them run slower by that factor. Since all
    share one speed, an operator ends when the *work* done since the run began (µs at full speed) has grown by its
    duration: what runs beside it never reorders the ends, so one heap holds them. O(n * (log n + streams)).
    """
    missing, followers = _dependencies(schedule, latency)
    ready = [0.0] * len(graph)
    start = [0.0] * len(graph)
    end = [0.0] * len(graph)
    starting = [(0.0, step.operator) for step in schedule.steps if missing[step.operator] == 0]  # heap: by time
    starting.sort()
    ending: list[tuple[float, int]] = []  # heap: by work
    footprints: dict[int, float] = {}  # of the running ones
    now = work = 0.0
    slowdown = 1.0
    finished = 0
    while starting or ending:
        until_end = now + max(0.0, ending[0][0] - work) * slowdown if ending else float("inf")
        if starting and starting[0][0] < until_end:
            at, operator = heappop(starting)
            work += (at - now) / slowdown
            now = start[operator] = at
            heappush(ending, (work + profile.durations[operator], operator))
            footprints[operator] = profile.operators[operator].footprint
        else:
            work, operator = heappop(ending)
            now = end[operator] = until_end
            finished += 1
            del footprints[operator]
            for follower, hop_us in followers[operator]:
                missing[follower] -= 1
                ready[follower] = max(ready[follower], now + hop_us)
                if missing[follower] == 0:
                    heappush(starting, (ready[follower], follower))
        slowdown = max(1.0, sum(footprints.values()))  # summed anew: no rounding is carried along
    if finished != len(graph):
        raise ScheduleError(f"{schedule.policy}: {len(graph) - finished} operators never start")
    return Simulation(max(end, default=0.0), tuple(zip(start, end, strict=True)))


def _dependencies(schedule: Schedule, latency: Latency) -> tuple[dict[int, int], dict[int, list[tuple[int, float]]]]:
    """Per operator how many it follows directly (waits and its stream's previous one), and those that follow it, each
    with the time between the two."""
    missing: dict[int, int] = {}
    followers: dict[int, list[tuple[int, float]]] = {step.operator: [] for step in schedule.steps}
    previous: dict[int, int] = {}
    for step in schedule.steps:
        missing[step.operator] = len(step.waits) + (step.stream in previous)
        for source in step.waits:
            followers.setdefault(source, []).append((step.operator, latency.dependency_us + latency.wait_us))
        if step.stream in previous:
            followers[previous[step.stream]].append((step.operator, latency.dependency_us))
        previous[step.stream] = step.operator
    return missing, followers
