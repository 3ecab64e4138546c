"""A part of an operator graph as a graph of its own, with its part of the profile. No torch in here."""

from __future__ import annotations

from collections.abc import Sequence

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.profile import Profile


def part_of(graph: OperatorGraph, profile: Profile, operators: Sequence[int]) -> tuple[OperatorGraph, Profile]:
    """``operators``: in program order, each once; number i of the part is the i-th of them. Edges that lead to or from
    others are left out."""
    place = {operator: index for index, operator in enumerate(operators)}
    part = OperatorGraph(
        tuple(graph.operators[operator] for operator in operators),
        graph.buffers,
        tuple(tuple(place[s] for s in graph.predecessors[operator] if s in place) for operator in operators),
    )
    return part, Profile(tuple(profile.operators[operator] for operator in operators), profile.roofline)
