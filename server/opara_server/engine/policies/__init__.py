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
from opara_server.engine.policies.searching import search_from
from opara_server.engine.policies.sequential import sequential
from opara_server.engine.policies.wavefront import wavefront
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import MAX_STREAMS, Schedule
from opara_server.engine.search import Stop, never

__all__ = ["POLICIES", "SLOW_POLICIES", "Policy", "check_policy", "make_schedule", "prioritise", "quick_policies"]

Policy = Callable[[OperatorGraph, Profile], Schedule]


def search(graph: OperatorGraph, profile: Profile, streams: int = MAX_STREAMS, stop: Stop = never) -> Schedule:
    """Local search from the list schedules on at most ``streams`` (>= 1, else ValueError), until ``stop``."""
    if streams < 1:
        raise ValueError(f"search needs at least one stream, not {streams}")
    counts = [streams, *(count for count in FEWER_STREAMS if count < streams)]
    names = [name if count == MAX_STREAMS else f"{name}:{count}" for name in LIST_SCHEDULING for count in counts]
    return search_from(graph, profile, [make_schedule(graph, profile, name) for name in names], stop)


LIST_SCHEDULING: dict[str, Callable[[OperatorGraph, Profile, int], Schedule]] = {
    "critical_path": critical_path,
    "heft": heft,
    "packed": packed,
}
ON_STREAMS = {**LIST_SCHEDULING, "ios": ios, "search": search}
POLICIES: dict[str, Policy] = {
    "sequential": sequential,
    "opara": opara,
    "nimble": nimble,
    "wavefront": wavefront,
    "critical_path": critical_path,
    "heft": heft,
    "packed": packed,
    "ios": ios,
    "search": search,
}
SLOW_POLICIES = ("ios", "search")  # seconds on a thousand operators
FEWER_STREAMS = (8, 6, 4, 3, 2)  # of the list schedules as well: often better on a device that is full

_SEARCH = re.compile(r"search\((.*)\)")
_ON_STREAMS = re.compile(rf"({'|'.join(ON_STREAMS)}):[1-9][0-9]*")


def quick_policies(width: int) -> list[str]:
    """All but the slow ones; those by list scheduling also on fewer streams than a graph of ``width`` could use."""
    fewer = [f"{name}:{count}" for name in LIST_SCHEDULING for count in FEWER_STREAMS if count < width]
    return [name for name in POLICIES if name not in SLOW_POLICIES] + fewer


def make_schedule(graph: OperatorGraph, profile: Profile, policy: str, stop: Stop = never) -> Schedule:
    """``policy``: a name from POLICIES, or one from ON_STREAMS with ":K" for at most K streams, or either of these in
    "search(...)" for a local search that starts there. The schedule bears it, and that of a search without a start
    bears the one that was best to start from: "search(packed:4)". ``stop`` ends a local search early.

    Raises ValueError on any other policy, and on a profile of another graph.
    """
    if len(profile.operators) != len(graph):
        raise ValueError(f"a profile of {len(profile.operators)} operators for a graph of {len(graph)}")
    check_policy(policy)
    if start := _SEARCH.fullmatch(policy):
        return search_from(graph, profile, [make_schedule(graph, profile, start[1])], stop)
    name, _, count = policy.partition(":")
    if name == "search":
        return search(graph, profile, int(count or MAX_STREAMS), stop)
    if count:
        return replace(ON_STREAMS[name](graph, profile, int(count)), policy=policy)
    return POLICIES[name](graph, profile)


def check_policy(policy: str) -> None:
    """Raise ValueError, naming what there is, on a policy that ``make_schedule`` does not know."""
    start = _SEARCH.fullmatch(policy)
    name = start[1] if start else policy
    if (start and name.startswith("search")) or (name not in POLICIES and not _ON_STREAMS.fullmatch(name)):
        raise ValueError(
            f"unknown policy {policy!r}: not one of {', '.join(POLICIES)}, {' or '.join(ON_STREAMS)} with :STREAMS, or "
            "search(POLICY)"
        )
