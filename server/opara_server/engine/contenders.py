"""Which schedules contend: each policy's, of which the simulator shortlists the most promising.

A parallel schedule should need hardly more memory than a sequential one: beside one that does a lean version of itself
contends. Urgent streams, of which the simulator knows nothing, contend beside the same schedule without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

from opara_server.engine.choice import Runnable
from opara_server.engine.lean import lean
from opara_server.engine.memory import memory_bytes
from opara_server.engine.plan import SEQUENTIAL
from opara_server.engine.policies import make_schedule, prioritise
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.schedule import Schedule, compact, fold
from opara_server.engine.search import Stop, never
from opara_server.engine.simulate import Latency, simulate

# Per lowering. In 12 of the 14 records of bench/data/schedules (H200, 7 models, up to 9 policies each) the six policies
# predicted fastest held the best one; on NASNet theirs took 0.4 % and 1.5 % longer, of five up to 1.8 %.
SHORTLIST = 6
ALWAYS = {SEQUENTIAL, "opara"}  # what everything is compared with, and the paper's method
LEAN = 2  # per lowering: each takes a second where there are hundreds of operators
LIMIT = 1.1  # times the sequential graph's memory
URGENT = 2  # per batch size: each is one more graph to capture and measure


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

    @property
    def family(self) -> tuple[str, bool]:
        """The same for those of one policy that differ in their number of streams."""
        return self.schedule.policy.partition(":")[0], self.compact

    @cached_property
    def peak_bytes(self) -> int:
        return memory_bytes(self.program.graph, self.schedule)

    @property
    def runnable(self) -> Runnable:
        return Runnable(self.program, self.schedule, self.profile.durations)

    @cached_property
    def _predictions(self) -> dict[Latency, float]:
        return {}

    def predicted_us(self, latency: Latency) -> float:
        if latency not in self._predictions:
            simulation = simulate(self.program.graph, self.schedule, self.profile, latency)
            self._predictions[latency] = simulation.makespan_us
        return self._predictions[latency]


def contenders(
    program: Program, profile: Profile, policies: Iterable[str], max_streams: int, stop: Stop = never
) -> list[Contender]:
    """Sequential first, then the schedule of each policy, and compacted where that makes a difference.

    ``stop`` ends a local search early. Policies may agree on a schedule.
    """
    graph = program.graph
    found = [Contender(program, profile, make_schedule(graph, profile, SEQUENTIAL), compact=False)]
    if program.lowering == "whole":
        return found
    for name in policies:
        if name == SEQUENTIAL:
            continue
        schedule = make_schedule(graph, profile, name, stop)
        versions = [fold(graph, version, max_streams) for version in (schedule, compact(graph, schedule))]
        found.append(Contender(program, profile, versions[0], compact=False))
        if versions[1] != versions[0]:
            found.append(Contender(program, profile, versions[1], compact=True))
    return found


def shortlist(entrants: Sequence[Contender], latency: Latency, count: int = SHORTLIST) -> list[Contender]:
    """Of one program's contenders the sequential one, the paper's, and the ``count`` that should be fastest, each graph
    once, and each policy once: on its best number of streams, the fewest where several should be equally fast."""
    distinct = {entrant.key: entrant for entrant in reversed(entrants)}
    families: dict[tuple[str, bool], Contender] = {}
    for entrant in sorted(distinct.values(), key=lambda entrant: entrant.predicted_us(latency)):
        families.setdefault(entrant.family, entrant)
    promising = list(families.values())[:count]
    return [e for e in entrants if e in promising or e.schedule.policy in ALWAYS]


def with_lean(entrants: Sequence[Contender], latency: Latency, stop: Stop = never) -> list[Contender]:
    """And after the most promising of each program that are over their limit the same with so much more order that they
    are not, where that can be had. ``stop`` is asked before each but the very first."""
    limits = limits_bytes(entrants)
    over: dict[int, list[int]] = {}
    for number, (entrant, limit) in enumerate(zip(entrants, limits, strict=True)):
        if entrant.peak_bytes > limit:
            over.setdefault(id(entrant.program), []).append(number)
    tried = chain.from_iterable(_by_promise(entrants, numbers, latency)[:LEAN] for numbers in over.values())
    leaner = {}
    for place, number in enumerate(_by_promise(entrants, tried, latency)):
        if place and stop():
            break
        entrant = entrants[number]
        schedule = lean(entrant.program.graph, entrant.schedule, entrant.profile, latency, limits[number])
        if schedule:
            leaner[number] = replace(entrant, schedule=schedule)
    return _each_followed_by(entrants, leaner)


def with_urgent(entrants: Sequence[Contender], latency: Latency, count: int = URGENT) -> list[Contender]:
    """And after the ``count`` most promising of which some streams carry the longest path, but not all, the same with
    those urgent."""
    urgent: dict[int, Contender] = {}
    for number in _by_promise(entrants, range(len(entrants)), latency):
        if len(urgent) == count:
            break
        entrant = entrants[number]
        schedule = prioritise(entrant.program.graph, entrant.profile, entrant.schedule)
        if len(schedule.urgent) < schedule.streams:
            urgent[number] = replace(entrant, schedule=schedule)
    return _each_followed_by(entrants, urgent)


def _by_promise(entrants: Sequence[Contender], numbers: Iterable[int], latency: Latency) -> list[int]:
    return sorted(numbers, key=lambda number: entrants[number].predicted_us(latency))


def _each_followed_by(entrants: Sequence[Contender], following: Mapping[int, Contender]) -> list[Contender]:
    pairs = ((entrant, following.get(number)) for number, entrant in enumerate(entrants))
    return [entrant for pair in pairs for entrant in pair if entrant]


def limits_bytes(entrants: Sequence[Contender]) -> list[int]:
    """How many bytes each should need at most: LIMIT times what the simplest needs; where its own program's sequential
    graph needs more (it may have merged what others do one after the other), no more than that."""
    own = {id(e.program): e.peak_bytes for e in entrants if e.schedule.policy == SEQUENTIAL}
    return [max(int(LIMIT * entrants[0].peak_bytes), own.get(id(e.program), 0)) for e in entrants]
