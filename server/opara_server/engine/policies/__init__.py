"""The policies: pure functions from an operator graph and its profile to a schedule. No torch in here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.policies.critical_path import critical_path, prioritise
from opara_server.engine.policies.heft import heft
from opara_server.engine.policies.ios import ios
from opara_server.engine.policies.nimble import nimble
from opara_server.engine.policies.opara import opara
from opara_server.engine.policies.packed import packed
from opara_server.engine.policies.sequential import sequential
from opara_server.engine.policies.wavefront import wavefront
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import Schedule

__all__ = ["POLICIES", "Policy", "check_policy", "make_schedule", "prioritise"]

Policy = Callable[[OperatorGraph, Profile], Schedule]

ON_STREAMS: dict[str, Callable[[OperatorGraph, Profile, int], Schedule]] = {
    "critical_path": critical_path,
    "heft": heft,
    "packed": packed,
    "ios": ios,
}
POLICIES: dict[str, Policy] = {
    "sequential": sequential,
    "opara": opara,
    "nimble": nimble,
    "wavefront": wavefront,
    "critical_path": critical_path,
    "heft": heft,
    "packed": packed,
    "ios": ios,
}


def make_schedule(graph: OperatorGraph, profile: Profile, policy: str) -> Schedule:
    """``policy``: a name from POLICIES, or one from ON_STREAMS with ":K" for at most K streams; the schedule bears it.

    Raises ValueError on any other policy, and on a profile of another graph.
    """
    if len(profile.operators) != len(graph):
        raise ValueError(f"a profile of {len(profile.operators)} operators for a graph of {len(graph)}")
    check_policy(policy)
    name, _, count = policy.partition(":")
    if count:
        return replace(ON_STREAMS[name](graph, profile, int(count)), policy=policy)
    return POLICIES[name](graph, profile)


def check_policy(policy: str) -> None:
    """Raise ValueError, naming what there is, on a policy that ``make_schedule`` does not know."""
    if policy not in POLICIES and not re.fullmatch(rf"({'|'.join(ON_STREAMS)}):[1-9][0-9]*", policy):
        raise ValueError(
            f"unknown policy {policy!r}: not one of {', '.join(POLICIES)}, or {' or '.join(ON_STREAMS)} with :STREAMS"
        )
