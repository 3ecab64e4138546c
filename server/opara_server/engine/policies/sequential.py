"""Everything on one stream in program order: what a plain CUDA Graph of the model does, and the fallback."""

from __future__ import annotations

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import Schedule, assemble


def sequential(graph: OperatorGraph, _profile: Profile) -> Schedule:
    return assemble("sequential", graph, range(len(graph)), [0] * len(graph))
