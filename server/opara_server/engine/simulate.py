"""How long a schedule should take: a discrete-event model of a device that shares itself among running operators.

Two things are modelled. *Latency*: a kernel starts a little after what it follows, later still if that ran on another
stream, and the device starts no more than so many kernels per µs. *Sharing*: kernels that run at once divide the device
among them (``sharing.py``). A prediction from the profile, never a measurement; no torch in here.
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

    ``dependency_us``: from the end of a kernel until the next one on its stream can start, also within an operator.
    ``wait_us``: what it takes in addition where the two are on different streams. ``issue_us``: from one kernel that
    the device takes up to the next. ``switch_us``: how much later a kernel starts when the one taken up before it is of
    another stream. ``ramp_us``: the part of a kernel's duration, for its launch and its end, that is the same in
    company.
    """

    dependency_us: float = 0.37
    wait_us: float = 0.6
    issue_us: float = 0.31
    switch_us: float = 0.6
    ramp_us: float = 0.42


IDEAL = Latency(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Simulation:
    """``intervals[operator]`` = (start, end) in µs from the start of the run."""

    makespan_us: float
    intervals: tuple[tuple[float, float], ...]


def simulate(graph: OperatorGraph, schedule: Schedule, profile: Profile, latency: Latency) -> Simulation:
    """Run ``schedule`` in the model; exact up to rounding. Raises ScheduleError if an operator could never start.

    An operator is ready some latency after the last of its waits and of its stream's previous operator, and each of its
    kernels after the one before. Ready kernels are taken up one after the other in the order in which they became
    ready, ties in launch order. A kernel first takes its ramp and then does its work at the speed that the others leave
    it. O(n * (log n + running)) for n kernels.
    """
    missing, followers = _dependencies(schedule, latency)
    place = {step.operator: number for number, step in enumerate(schedule.steps)}
    coming = [(0.0, number, o) for o, number in place.items() if missing[o] == 0]  # kernels: a heap, being sorted
    durations = profile.kernel_durations
    done = [0] * len(graph)  # kernels
    work: dict[int, float] = {}  # of kernels that have been taken up and are in their ramps
    ready, start, end = [0.0] * len(graph), [0.0] * len(graph), [NEVER] * len(graph)
    sharing = Sharing()
    front = _Front(schedule, latency)
    while coming or sharing.first >= 0:
        if coming and coming[0][0] < sharing.first_end:
            now, number, operator = heappop(coming)
            if operator in work:
                room, bandwidth = profile.operators[operator].footprint, profile.bandwidth[operator]
                sharing.join(now, operator, work.pop(operator), room, bandwidth)
                continue
            begin = front.take_up(now, operator)
            if done[operator] == 0:
                start[operator] = begin
            duration = durations[operator][done[operator]]
            ramp = min(duration, latency.ramp_us)
            work[operator] = duration - ramp
            heappush(coming, (begin + ramp, number, operator))
            continue
        now, operator = sharing.first_end, sharing.first
        sharing.leave(now, operator)
        done[operator] += 1
        if done[operator] < len(durations[operator]):
            heappush(coming, (now + latency.dependency_us, place[operator], operator))
            continue
        end[operator] = now
        for follower, hop_us in followers[operator]:
            missing[follower] -= 1
            ready[follower] = max(ready[follower], now + hop_us)
            if missing[follower] == 0:
                heappush(coming, (ready[follower], place[follower], follower))
    if NEVER in end:
        raise ScheduleError(f"{schedule.policy}: {end.count(NEVER)} operators never start")
    return Simulation(max(end, default=0.0), tuple(zip(start, end, strict=True)))


class _Front:
    """The part of the device that takes kernels up, one at a time and whatever their streams."""

    def __init__(self, schedule: Schedule, latency: Latency) -> None:
        self._stream = {step.operator: step.stream for step in schedule.steps}
        self._latency = latency
        self._free = 0.0
        self._latest = schedule.steps[0].stream if schedule.steps else 0

    def take_up(self, ready: float, operator: int) -> float:
        """When the next kernel of ``operator`` starts, which can from ``ready`` on."""
        begin = max(ready, self._free)
        self._free = begin + self._latency.issue_us
        switches = self._stream[operator] != self._latest
        self._latest = self._stream[operator]
        return begin + self._latency.switch_us if switches else begin


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
