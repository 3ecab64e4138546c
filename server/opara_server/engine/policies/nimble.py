"""Nimble's policy (Kwon et al., NeurIPS 2020): few streams, yet no order that the operator graph does not ask for."""

from __future__ import annotations

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.matching import chains, maximum_matching
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import Schedule, assemble, reuse_streams


def nimble(graph: OperatorGraph, _profile: Profile) -> Schedule:
    return assemble("nimble", graph, range(len(graph)), allocate_streams(graph))


def allocate_streams(graph: OperatorGraph) -> list[int]:
    """The stream of each operator: chains of the minimum equivalent graph, then streams that take over ended ones."""
    count = len(graph)
    chain_of = chains(maximum_matching(minimum_equivalent(graph), count), count)
    ends: dict[int, tuple[int, int]] = {}  # per chain its first and last operator
    for operator, chain in enumerate(chain_of):
        first, _ = ends.get(chain, (operator, operator))
        ends[chain] = (first, operator)
    number = {chain: index for index, chain in enumerate(ends)}
    reach = graph.descendants
    owner = reuse_streams(list(ends.values()), lambda a, b: bool(reach[a] >> b & 1))
    return [owner[number[chain]] for chain in chain_of]


def minimum_equivalent(graph: OperatorGraph) -> list[list[int]]:
    """The transitive reduction: per operator the successors that it reaches by no longer path, in program order."""
    reach = graph.descendants
    reduced = []
    for successors in graph.successors:
        kept = []
        covered = 0
        for successor in successors:  # program order is topological: whoever reaches this one came before it
            if not covered >> successor & 1:
                kept.append(successor)
                covered |= reach[successor]
        reduced.append(kept)
    return reduced
