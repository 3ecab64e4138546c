"""How long a schedule should take: a discrete-event model of a device that shares itself among running operators.

Two things are modelled. *Latency*: a kernel starts a little after what it follows, later still if that ran on another
stream, and the device starts no more than so many kernels per µs. *Sharing*: operators that run at once divide the
device among them (``sharing.py``). A prediction from the profile, never a measurement; no torch in here.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import Schedule, ScheduleError
from opara_server.engine.sharing import NEVER, Sharing


@dataclass(frozen=True, slots=True)
class Latency:
    """What a device takes besides the work itself, in µs. The defaults are those of CUDA Graphs on an H200 (PyTorch
    2.11, CUDA 13.0), fitted to the replays of 7 models in ``bench/results/engine_aten.json``.

    ``dependency_us``: from the end of a kernel to the start of the next one on its stream, also within an operator.
    ``wait_us``: what it takes in addition where the two are on different streams; ``event_us``: what each wait of an
    operator takes on top of that. ``issue_us``: from the start of a kernel to that of any other. ``ramp_us``: the part
    of a kernel's duration, for its launch and its end, that takes no longer in company.
    """

    dependency_us: float = 0.4
    wait_us: float = 1.0
    event_us: float = 0.1
    issue_us: float = 0.35
    ramp_us: float = 0.4


IDEAL = Latency(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Simulation:
    """``intervals[operator]`` = (start, end) in µs from the start of the run."""

    makespan_us: float
    intervals: tuple[tuple[float, float], ...]


def simulate(graph: OperatorGraph, schedule: Schedule, profile: Profile, latency: Latency) -> Simulation:
    """Run ``schedule`` in the model; exact up to rounding. Raises ScheduleError if an operator could never start.

    An operator is ready some latency after the last of its waits and of its stream's previous operator. The ready ones
    are issued one after the other in the order in which they became ready, ties in launch order. One that is issued
    first takes the time that company does not change (its kernels' ramps, and the hops between them) and then does its
    work at the speed that the others leave it. O(n * (log n + running)).
    """
    missing, followers, delay = _dependencies(schedule, latency)
    coming = [(0.0, place, s.operator) for place, s in enumerate(schedule.steps) if missing[s.operator] == 0]  # a heap
    place = {step.operator: number for number, step in enumerate(schedule.steps)}
    ready = [0.0] * len(graph)
    start = [NEVER] * len(graph)
    end = [0.0] * len(graph)
    work = [0.0] * len(graph)
    sharing = Sharing()
    issued = 0.0
    finished = 0
    while coming or sharing.first >= 0:
        if coming and coming[0][0] < sharing.first_end:
            now, number, operator = heappop(coming)
            seen = profile.operators[operator]
            if start[operator] == NEVER:
                kernels = len(seen.kernels) or 1
                ramps = min(seen.duration_us, kernels * latency.ramp_us)
                work[operator] = seen.duration_us - ramps
                start[operator] = begin = max(now, issued)
                issued = begin + kernels * latency.issue_us
                heappush(coming, (begin + ramps + (kernels - 1) * latency.dependency_us, number, operator))
            else:
                sharing.join(now, operator, work[operator], seen.footprint, profile.bandwidth[operator])
        else:
            operator, now = sharing.first, sharing.first_end
            sharing.leave(now, operator)
            end[operator] = now
            finished += 1
            for follower, hop_us in followers[operator]:
                missing[follower] -= 1
                ready[follower] = max(ready[follower], now + hop_us)
                if missing[follower] == 0:
                    heappush(coming, (ready[follower] + delay[follower], place[follower], follower))
    if finished != len(graph):
        raise ScheduleError(f"{schedule.policy}: {len(graph) - finished} operators never start")
    return Simulation(max(end, default=0.0), tuple(zip(start, end, strict=True)))


def _dependencies(
    schedule: Schedule, latency: Latency
) -> tuple[dict[int, int], dict[int, list[tuple[int, float]]], dict[int, float]]:
    """Per operator how many it follows directly (waits and its stream's previous one); those that follow it, each with
    the time between the two; and how long its waits hold it up in addition."""
    missing: dict[int, int] = {}
    followers: dict[int, list[tuple[int, float]]] = {step.operator: [] for step in schedule.steps}
    delay: dict[int, float] = {}
    previous: dict[int, int] = {}
    for step in schedule.steps:
        missing[step.operator] = len(step.waits) + (step.stream in previous)
        delay[step.operator] = len(step.waits) * latency.event_us
        for source in step.waits:
            followers.setdefault(source, []).append((step.operator, latency.dependency_us + latency.wait_us))
        if step.stream in previous:
            followers[previous[step.stream]].append((step.operator, latency.dependency_us))
        previous[step.stream] = step.operator
    return missing, followers, delay
