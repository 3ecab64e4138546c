"""IOS: stages by dynamic programming (Ding et al., "IOS: Inter-Operator Scheduler for CNN Acceleration", MLSys 2021).

A stage is a set of groups that run side by side, each in turn on a stream of its own; nothing of the next stage starts
before all of this one has ended. The price of a stage is simulated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opara_server.engine.graph import OperatorGraph
from opara_server.engine.part import part_of
from opara_server.engine.policies.stages import Limits, Poset, best_stages
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import MAX_STREAMS, Schedule, Step, assemble
from opara_server.engine.simulate import Latency, simulate

CHAINS_PER_GROUP = 3  # the paper's r, which counts convolutions with what follows them
BUDGET = 32_000  # stages tried: a second or two


def ios(graph: OperatorGraph, profile: Profile, streams: int = MAX_STREAMS) -> Schedule:
    """Stages of at most ``streams`` groups, the paper's s (>= 1, else ValueError).

    A chain, of which each operator is all that the one before it leads to, is not divided: it is the paper's operator.
    """
    if streams < 1:
        raise ValueError(f"ios needs at least one stream, not {streams}")
    chains = chains_of(graph)
    latency = Latency()
    hops = [sum(profile.durations[o] + latency.dependency_us for o in chain) for chain in chains]
    work = [sum(profile.durations[o] * profile.operators[o].footprint for o in chain) for chain in chains]
    poset = Poset.of(_contracted(graph, chains), hops, work)

    def flat(group: Sequence[int]) -> tuple[int, ...]:
        return tuple(operator for chain in group for operator in chains[chain])

    def price(groups: Sequence[Sequence[int]]) -> float:
        wait = latency.crossing_us if len(groups) > 1 else 0.0
        return stage_us(graph, profile, [flat(group) for group in groups], latency) + latency.dependency_us + wait

    found = best_stages(poset, price, Limits.within(BUDGET, len(chains), CHAINS_PER_GROUP, streams))
    return in_stages(graph, [[flat(group) for group in stage] for stage in found])


def chains_of(graph: OperatorGraph) -> list[list[int]]:
    """The operators in chains as long as can be, by the first of each: which is a topological order of the chains."""
    found: list[list[int]] = []
    chain_of: list[int] = []
    for operator, sources in enumerate(graph.predecessors):
        if len(sources) == 1 and len(graph.successors[sources[0]]) == 1:
            chain_of.append(chain_of[sources[0]])
        else:
            chain_of.append(len(found))
            found.append([])
        found[chain_of[operator]].append(operator)
    return found


def _contracted(graph: OperatorGraph, chains: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Per chain the chains that it follows."""
    chain_of = {operator: number for number, chain in enumerate(chains) for operator in chain}
    return [tuple({chain_of[source]: None for source in graph.predecessors[chain[0]]}) for chain in chains]


def stage_us(graph: OperatorGraph, profile: Profile, groups: Sequence[Sequence[int]], latency: Latency) -> float:
    """How long the groups take side by side, in µs, when nothing else runs."""
    operators = sorted(operator for group in groups for operator in group)
    place = {operator: index for index, operator in enumerate(operators)}
    steps = tuple(Step(place[operator], stream) for stream, group in enumerate(groups) for operator in group)
    part, profile_of_part = part_of(graph, profile, operators)
    return simulate(part, Schedule("stage", steps), profile_of_part, latency).makespan_us


def in_stages(graph: OperatorGraph, stages: Sequence[Sequence[Sequence[int]]]) -> Schedule:
    """A schedule with a barrier after each stage. A group goes on with the stream of one that it depends on, if it can:
    that saves a wait."""
    stream = [0] * len(graph)
    barrier: dict[int, Sequence[int]] = {}
    ends: dict[int, int] = {}  # of the stage before: per stream its last operator
    for stage in stages:
        taken = _streams(graph, stage, ends)
        for group, chosen in zip(stage, taken, strict=True):
            barrier[group[0]] = tuple(ends.values())
            for operator in group:
                stream[operator] = chosen
        ends = {chosen: group[-1] for group, chosen in zip(stage, taken, strict=True)}
    order = (operator for stage in stages for group in stage for operator in group)
    return assemble("ios", graph, order, stream, barrier)


def _streams(graph: OperatorGraph, stage: Sequence[Sequence[int]], ends: Mapping[int, int]) -> list[int]:
    free = dict.fromkeys([*ends, *(number for number in range(len(stage) + len(ends)) if number not in ends)])
    taken: dict[int, int] = {}
    for number, group in enumerate(stage):
        sources = {source for operator in group for source in graph.predecessors[operator]}
        left = next((s for s in ends if s in free and ends[s] in sources), None)
        if left is not None:
            taken[number] = left
            del free[left]
    for number in range(len(stage)):
        if number not in taken:
            taken[number] = next(iter(free))
            del free[taken[number]]
    return [taken[number] for number in range(len(stage))]
