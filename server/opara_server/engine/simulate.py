"""How long a schedule should take: a discrete-event model of a device that shares itself among running operators.

Two things are modelled. *Latency*: a kernel starts a little after what it follows, later still if it follows several,
and the device starts no more than so many kernels per µs. *Sharing*: kernels that run at once divide the device among
them (``sharing.py``). A prediction from the profile, never a measurement; no torch in here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import Schedule, ScheduleError
from opara_server.engine.sharing import NEVER, Sharing


@dataclass(frozen=True, slots=True)
class Latency:
    """What a device takes besides the work itself, in µs. The defaults are those of CUDA Graphs on an H200 (PyTorch
    2.11, CUDA 13.0), fitted by ``bench.calibration`` to replays of 6 models, batch 1 and 8, of fused kernels.

    ``dependency_us``: from the end of a kernel until the next one on its stream can start, also within an operator.
    ``wait_us``: what it takes in addition where the two are on different streams. ``join_us``: what an operator takes
    in addition that follows several others. ``reach``: a CUDA Graph knows no streams, only edges; one from the stream's
    previous operator that an awaited operator implies costs nothing if it does so within so many kernels, as if the
    driver dropped it, and else as much as any (seen in chains on several streams, BERT's). ``issue_us``: from one
    kernel that the device takes up to the next. ``company``: by how much of its time a kernel takes longer, at least,
    while others run.
    """

    dependency_us: float = 0.27
    wait_us: float = 0.0
    join_us: float = 0.85
    issue_us: float = 0.4
    company: float = 0.2
    reach: int = 4

    @property
    def crossing_us(self) -> float:
        """What a policy should reckon for following an operator of another stream, since it often joins the two."""
        return self.wait_us + self.join_us


IDEAL = Latency(0.0, 0.0, 0.0, 0.0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class Simulation:
    """``intervals[operator]`` = (start, end) in µs from the start of the run."""

    makespan_us: float
    intervals: tuple[tuple[float, float], ...]


def simulate(graph: OperatorGraph, schedule: Schedule, profile: Profile, latency: Latency) -> Simulation:
    """Run ``schedule`` in the model; exact up to rounding. Raises ScheduleError if an operator could never start.

    An operator is ready some latency after the last of those that it follows has ended, and each of its kernels after
    the one before. Ready kernels are taken up one after the other in the order in which they became ready, ties in
    launch order, and do their work at the speed that the others leave them. O(n * (log n + running)) for n kernels.
    """
    durations, bandwidth, operators = profile.kernel_durations, profile.bandwidth, profile.operators
    place = {step.operator: number for number, step in enumerate(schedule.steps)}
    missing, followers = _dependencies(schedule, durations, latency)
    coming = [(0.0, number, o) for o, number in place.items() if missing[o] == 0]  # kernels: a heap, being sorted
    done = [0] * len(graph)  # kernels
    ready, start, end = [0.0] * len(graph), [NEVER] * len(graph), [NEVER] * len(graph)
    sharing = Sharing(latency.company)
    free = 0.0  # when the device can take up another kernel
    while coming or sharing.first >= 0:
        now = max(coming[0][0], free) if coming else NEVER
        if now < sharing.first_end:
            _, _, operator = heappop(coming)
            free = now + latency.issue_us
            start[operator] = min(start[operator], now)
            work_us = durations[operator][done[operator]]
            sharing.join(now, operator, work_us, operators[operator].footprint, bandwidth[operator])
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


def _dependencies(
    schedule: Schedule, durations: Sequence[Sequence[float]], latency: Latency
) -> tuple[dict[int, int], dict[int, list[tuple[int, float]]]]:
    """Per operator how many it follows directly, and those that follow it, each with the time between the two."""
    follows: dict[int, tuple[int, ...]] = {}
    followers: dict[int, list[tuple[int, float]]] = {step.operator: [] for step in schedule.steps}
    previous: dict[int, int] = {}
    for step in schedule.steps:
        own = previous.get(step.stream)
        sources = step.waits
        if own is not None and not _implied(own, sources, follows, durations, latency.reach):
            sources = (*sources, own)
        hop_us = latency.dependency_us + (latency.join_us if len(sources) > 1 else 0.0)
        for source in sources:
            hop = hop_us if source == own else hop_us + latency.wait_us
            followers.setdefault(source, []).append((step.operator, hop))
        follows[step.operator] = sources
        previous[step.stream] = step.operator
    return {operator: len(sources) for operator, sources in follows.items()}, followers


def _implied(
    operator: int,
    sources: Sequence[int],
    follows: Mapping[int, Sequence[int]],
    durations: Sequence[Sequence[float]],
    reach: int,
) -> bool:
    """Whether one of ``sources`` follows ``operator`` in at most ``reach`` kernels, its own included."""
    for source in sources:
        if behind := follows.get(source):
            left = reach - len(durations[source])
            if left >= 0 and (operator in behind or _implied(operator, behind, follows, durations, left)):
                return True
    return False
