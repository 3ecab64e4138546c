"""Local search: a schedule is changed a little, again and again, and what the simulator finds better is kept.

A large schedule is searched through a window (large neighbourhood search, Shaw 1998): the operators of one stretch of
time, simulated by themselves, each with the time that must follow it. What is gained in a window is believed only when
the whole schedule gains it. No torch in here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.moves import Layout, Neighbourhood
from opara_server.engine.part import part_of
from opara_server.engine.profile import OperatorProfile, Profile
from opara_server.engine.schedule import Schedule
from opara_server.engine.simulate import Latency, Simulation, simulate

WINDOW = 80  # operators
TRIES = 60  # in one window, before the next

Stop = Callable[[], bool]  # whether to be content with what there is


def never() -> bool:
    return False


def improve(
    graph: OperatorGraph,
    profile: Profile,
    schedule: Schedule,
    latency: Latency,
    *,
    evaluations: int,
    seed: int,
    stop: Stop = never,
) -> Schedule:
    """A schedule that the simulator finds faster than ``schedule``, or as fast with fewer waits or streams; else
    ``schedule`` itself. Never on more streams; none of them is urgent.

    ``evaluations``: how many changes are tried, unless ``stop``, asked before each window, ends that earlier: what was
    found by then is what fewer evaluations find. The same arguments give the same schedule.
    """
    random = Random(seed)
    problem = _Problem(graph, profile, latency, schedule.streams)
    given = best = problem.solved(schedule)
    while evaluations > 0 and len(graph) > 1 and not stop():
        tries = min(evaluations, TRIES)
        evaluations -= tries
        first = random.randrange(-WINDOW // 2, max(1, len(graph) - WINDOW // 2)) if len(graph) > WINDOW else 0
        window = _Window.of(problem, best, max(0, first), first + WINDOW)
        changed = window.searched(tries, random)
        if changed is not None:
            found = problem.solved(window.put_back(best.layout, changed).schedule(graph, schedule.policy))
            best = min(found, best, key=lambda solution: solution.score)
    return best.schedule if best.score < given.score else schedule


@dataclass(frozen=True)
class _Solution:
    """``layout``: the schedule's, launched in the order in which its operators start."""

    schedule: Schedule
    simulation: Simulation
    layout: Layout

    @cached_property
    def score(self) -> tuple[float, int, int]:
        """The less the better."""
        return round(self.simulation.makespan_us, 6), self.schedule.synchronisations, self.schedule.streams


@dataclass(frozen=True)
class _Problem:
    graph: OperatorGraph
    profile: Profile
    latency: Latency
    streams: int

    def solved(self, schedule: Schedule) -> _Solution:
        simulation = simulate(self.graph, schedule, self.profile, self.latency)
        layout = Layout.of(self.graph, schedule)
        place = {operator: number for number, operator in enumerate(layout.order)}
        order = sorted(layout.order, key=lambda o: (simulation.intervals[o][0], place[o]))
        return _Solution(schedule, simulation, replace(layout, order=tuple(order)))

    def hop_us(self, same_stream: bool) -> float:
        return self.latency.dependency_us + (0.0 if same_stream else self.latency.wait_us)


def remaining_us(problem: _Problem, solution: _Solution) -> list[float]:
    """Per operator how long the run goes on after its start, at the least, when all run as long as they did."""
    graph, layout, intervals = problem.graph, solution.layout, solution.simulation.intervals
    remaining = [0.0] * len(graph)
    following: dict[int, float] = {}  # per operator: the time from its end
    next_on: dict[int, int] = {}
    for operator in reversed(layout.order):
        stream = layout.stream[operator]
        after = following.get(operator, 0.0)
        if stream in next_on:
            after = max(after, remaining[next_on[stream]] + problem.hop_us(True))
        remaining[operator] = intervals[operator][1] - intervals[operator][0] + after
        for source in (*graph.predecessors[operator], *layout.held[operator]):
            hop = problem.hop_us(layout.stream[source] == stream)
            following[source] = max(following.get(source, 0.0), remaining[operator] + hop)
        next_on[stream] = operator
    return remaining


@dataclass(frozen=True)
class _Window:
    """A stretch of a solution's launch order, and first of all those that still run when it begins, which stay as they
    are. All but ``members``, which are in program order, are numbered within them.

    ``before``: per operator the streams of its predecessors that have ended by then. ``after``: per operator its
    successors behind the window, and ``next_on``: per stream the next one behind it, as stream and remaining time.
    """

    problem: _Problem
    first: int
    members: tuple[int, ...]
    fixed: int
    graph: OperatorGraph
    profile: Profile
    layout: Layout
    before: tuple[tuple[int, ...], ...]
    after: tuple[tuple[tuple[int, float], ...], ...]
    next_on: dict[int, float]

    @classmethod
    def of(cls, problem: _Problem, solution: _Solution, first: int, last: int) -> _Window:
        layout, intervals = solution.layout, solution.simulation.intervals
        begin = intervals[layout.order[first]][0]
        running = [operator for operator in layout.order[:first] if intervals[operator][1] > begin]
        order = (*running, *layout.order[first:last])
        members = sorted(order)
        number = {operator: index for index, operator in enumerate(members)}
        remaining = remaining_us(problem, solution)
        behind = layout.order[last:]
        stream = layout.stream
        graph, profile = part_of(problem.graph, problem.profile, members)
        left = [
            _rest(seen, intervals[o], begin) if o in running else seen
            for o, seen in zip(members, profile.operators, strict=True)
        ]
        past = set(layout.order[:first]).difference(running)
        future = set(behind)
        return cls(
            problem,
            first,
            tuple(members),
            len(running),
            graph,
            replace(profile, operators=tuple(left)),
            Layout(
                tuple(number[o] for o in order),
                tuple(stream[o] for o in members),
                tuple(tuple(number[h] for h in layout.held[o] if h in number) for o in members),
            ),
            tuple(tuple(stream[p] for p in problem.graph.predecessors[o] if p in past) for o in members),
            tuple(
                tuple((stream[s], remaining[s]) for s in problem.graph.successors[o] if s in future) for o in members
            ),
            {stream[o]: remaining[o] for o in reversed(behind)},
        )

    def searched(self, tries: int, random: Random) -> Layout | None:
        """The best layout found by hill climbing, which also goes sideways; None where none is better."""
        around = Neighbourhood(self.graph, self.fixed, self.problem.streams)
        best = self.layout
        at_first, starts = self._judged(best)
        score = at_first
        for _ in range(tries):
            layout = around.propose(best, starts, random)
            if layout is not None:
                judged, begun = self._judged(layout)
                if judged <= score:
                    best, score, starts = layout, judged, begun
        return best if score < at_first else None

    def _judged(self, layout: Layout) -> tuple[tuple[float, int], list[float]]:
        """How long the whole run should take from here on, with how many waits; and when each operator starts."""
        schedule = layout.schedule(self.graph, "window")
        simulation = simulate(self.graph, schedule, self.profile, self.problem.latency)
        hop_us = self.problem.hop_us
        waits = schedule.synchronisations
        finish = 0.0
        last_on: dict[int, float] = {}
        for operator in layout.order:
            end, stream = simulation.intervals[operator][1], layout.stream[operator]
            last_on[stream] = end
            finish = max([finish, end, *(end + hop_us(s == stream) + us for s, us in self.after[operator])])
            waits += sum(s != stream for s in self.before[operator]) + sum(s != stream for s, _ in self.after[operator])
        for stream, us in self.next_on.items():
            finish = max(finish, last_on.get(stream, 0.0) + hop_us(True) + us)
        return (round(finish, 6), waits), [start for start, _ in simulation.intervals]

    def put_back(self, whole: Layout, layout: Layout) -> Layout:
        """``whole`` with this window of it changed to ``layout``."""
        changed = [self.members[o] for o in layout.order[self.fixed :]]
        stream, held = list(whole.stream), list(whole.held)
        inside = set(self.members)
        for number, operator in enumerate(self.members):
            stream[operator] = layout.stream[number]
            outside = (h for h in whole.held[operator] if h not in inside)
            held[operator] = (*outside, *(self.members[h] for h in layout.held[number]))
        order = (*whole.order[: self.first], *changed, *whole.order[self.first + len(changed) :])
        return Layout(order, tuple(stream), tuple(held))


def _rest(seen: OperatorProfile, interval: tuple[float, float], now: float) -> OperatorProfile:
    """What is left of an operator that has run for a while."""
    start, end = interval
    share = (end - now) / (end - start)
    return replace(seen, duration_us=seen.duration_us * share, bytes=round(seen.bytes * share), kernels=())
