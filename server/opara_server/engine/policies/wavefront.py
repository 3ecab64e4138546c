"""Breadth-first waves with a barrier between them: Rammer's order (OSDI 2020), as the Opara paper compares with it."""

from __future__ import annotations

from itertools import pairwise

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import Schedule, assemble


def wavefront(graph: OperatorGraph, _profile: Profile) -> Schedule:
    """Every operator after all operators of the wave before it, those of one wave on streams of their own.

    Nothing lies between two waves, so an operator must wait for each of the wave before except the one ahead of it on
    its stream. Numbering streams alike in every wave makes the most of that exception.
    """
    waves = levels(graph)
    stream = [0] * len(graph)
    for wave in waves:
        for place, operator in enumerate(wave):
            stream[operator] = place
    barrier = {operator: before for before, wave in pairwise(waves) for operator in wave}
    return assemble("wavefront", graph, (operator for wave in waves for operator in wave), stream, barrier)


def levels(graph: OperatorGraph) -> list[list[int]]:
    """Operators by the number of operators on the longest path that leads to them, in program order."""
    level: list[int] = []
    waves: list[list[int]] = []
    for operator, sources in enumerate(graph.predecessors):
        level.append(1 + max((level[source] for source in sources), default=-1))
        if level[operator] == len(waves):
            waves.append([])
        waves[level[operator]].append(operator)
    return waves
