"""Local search from the best of the list schedules, by simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import Schedule
from opara_server.engine.search import Stop, improve, never
from opara_server.engine.simulate import Latency, simulate

FINALISTS = 2
LEAST_EVALUATIONS = 500
EVALUATIONS_PER_OPERATOR = 3


def search_from(graph: OperatorGraph, profile: Profile, starts: Sequence[Schedule], stop: Stop = never) -> Schedule:
    """The best schedule found from any of ``starts`` (at least one), named "search(START)".

    The most promising ones are improved for half of the evaluations each, the best of those for the other half. So it
    comes to the same schedule from all starts as from the one that it names, unless ``stop`` ends it (search.improve).
    """
    evaluations = (LEAST_EVALUATIONS + EVALUATIONS_PER_OPERATOR * len(graph)) // 2
    latency = Latency()

    def score(schedule: Schedule) -> tuple[float, int, int]:
        makespan_us = simulate(graph, schedule, profile, latency).makespan_us
        return round(makespan_us, 6), schedule.synchronisations, schedule.streams

    finalists = sorted({start.steps: start for start in reversed(starts)}.values(), key=score)[:FINALISTS]
    improved = [improve(graph, profile, f, latency, evaluations=evaluations, seed=0, stop=stop) for f in finalists]
    best = improve(graph, profile, min(improved, key=score), latency, evaluations=evaluations, seed=1, stop=stop)
    return replace(best, policy=f"search({best.policy})")
