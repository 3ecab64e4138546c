"""The cheapest way to take a partial order apart into stages: IOS's dynamic programming, with a bound on its states.

The paper keeps every state and prunes what a stage may be; its states grow with (n / width) ** width, which for a
NASNet is too many. So of all states with equally many elements done only the most promising are gone on with (beam
search), and of a state's stages only so many are tried. Where nothing is cut the result is exact. No clock decides:
the same arguments give the same stages. Sets are bit sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from heapq import nsmallest
from itertools import chain
from math import isqrt

Groups = tuple[tuple[int, ...], ...]  # of one stage: elements in order
Grouping = Callable[[int], Groups]

LEAST_STAGES = 32


@dataclass(frozen=True)
class Limits:
    """``per_group`` and ``groups``: the paper's r and s. ``states``: kept of those with equally many elements done.
    ``stages``: tried from each of them."""

    per_group: int
    groups: int
    states: int
    stages: int

    @classmethod
    def within(cls, budget: int, elements: int, per_group: int, groups: int) -> Limits:
        """For at most ``budget`` stages tried, or LEAST_STAGES per element where that is more."""
        share = max(LEAST_STAGES, budget // max(1, elements))
        stages = max(LEAST_STAGES, isqrt(16 * share))
        return cls(per_group, groups, share // stages, stages)


@dataclass(frozen=True)
class Poset:
    """Elements in a topological order. ``tails``: per element the longest path from it on; ``work``: what it takes of
    the device at the least; both in the unit of a stage's price."""

    predecessors: tuple[tuple[int, ...], ...]
    successors: tuple[tuple[int, ...], ...]
    needs: tuple[int, ...]  # the predecessors as a set
    tails: tuple[float, ...]
    work: tuple[float, ...]

    @classmethod
    def of(cls, predecessors: Sequence[tuple[int, ...]], lengths: Sequence[float], work: Sequence[float]) -> Poset:
        successors: list[list[int]] = [[] for _ in predecessors]
        for element, sources in enumerate(predecessors):
            for source in sources:
                successors[source].append(element)
        tails = [0.0] * len(predecessors)
        for element in reversed(range(len(predecessors))):
            tails[element] = lengths[element] + max((tails[s] for s in successors[element]), default=0.0)
        needs = tuple(sum(1 << source for source in sources) for sources in predecessors)
        return cls(tuple(predecessors), tuple(map(tuple, successors)), needs, tuple(tails), tuple(work))

    def released(self, element: int, done: int) -> list[int]:
        """The successors that need nothing but what is in ``done``, which holds ``element``."""
        return [s for s in self.successors[element] if not self.needs[s] & ~done]


@dataclass(frozen=True, slots=True)
class _State:
    """``ready``: not done, all predecessors done; the longest tail first."""

    spent: float
    left: float  # work
    before: int
    ready: tuple[int, ...]


def best_stages(poset: Poset, price: Callable[[Groups], float], limits: Limits) -> list[Groups]:
    """Stages whose prices add up to as little as was found; all elements, each once, predecessors in earlier stages or
    before it in its group."""
    count = len(poset.needs)
    layers: list[dict[int, _State]] = [{} for _ in range(count + 1)]
    roots = [element for element in range(count) if not poset.needs[element]]
    layers[0][0] = _State(0.0, sum(poset.work), 0, _by_tail(poset, roots))
    grouped = cache(lambda stage: groups_of(poset, stage))
    priced = cache(lambda stage: price(grouped(stage)))
    for layer in layers[:-1]:
        for done, state in nsmallest(
            limits.states, layer.items(), key=lambda item: (_promise(poset, item[1]), item[0])
        ):
            for stage in _stages(poset, grouped, state.ready, done, limits):
                spent = state.spent + priced(stage)
                known = layers[(done | stage).bit_count()].get(done | stage)
                if known is None or spent < known.spent:
                    layers[(done | stage).bit_count()][done | stage] = _after(poset, state, done, stage, spent)
    found = []
    done = (1 << count) - 1
    while done:
        before = layers[done.bit_count()][done].before
        found.append(grouped(done & ~before))
        done = before
    return found[::-1]


def _promise(poset: Poset, state: _State) -> float:
    """What the state has cost and the least that can follow."""
    return state.spent + max([state.left, *(poset.tails[element] for element in state.ready[:1])])


def _after(poset: Poset, state: _State, done: int, stage: int, spent: float) -> _State:
    ready = {element for element in state.ready if not stage >> element & 1}
    left = state.left
    for element in _elements(stage):
        left -= poset.work[element]
        ready.update(s for s in poset.released(element, done | stage) if not stage >> s & 1)
    return _State(spent, left, done, _by_tail(poset, ready))


def _stages(poset: Poset, grouped: Grouping, ready: Sequence[int], done: int, limits: Limits) -> Iterator[int]:
    """Different stages that may follow ``done``, ``limits.stages`` at most: first those that take the longest tails,
    more or fewer of them, more or less deep; then all there are."""
    seen = set()
    for stage in chain(_ahead(poset, ready, done, limits), _all(poset, grouped, ready, done, limits)):
        if stage not in seen:
            seen.add(stage)
            groups = grouped(stage)
            if len(groups) <= limits.groups and max(map(len, groups)) <= limits.per_group:
                yield stage
            if len(seen) == limits.stages:
                return


def _ahead(poset: Poset, ready: Sequence[int], done: int, limits: Limits) -> Iterator[int]:
    for depth in range(limits.per_group, 0, -1):
        stage = 0
        for element in ready[: limits.groups]:
            stage |= _deepened(poset, element, done | stage, depth)
            yield stage


def _deepened(poset: Poset, element: int, done: int, depth: int) -> int:
    """``element`` and up to ``depth`` - 1 that it alone releases, the longest tail first."""
    group = 1 << element
    free = poset.released(element, done | group)
    while free and group.bit_count() < depth:
        chosen = max(free, key=lambda e: (poset.tails[e], -e))
        group |= 1 << chosen
        free = [e for e in free if e != chosen] + poset.released(chosen, done | group)
    return group


def _all(poset: Poset, grouped: Grouping, ready: Sequence[int], done: int, limits: Limits) -> Iterator[int]:
    """Every stage once: its elements are added in one order only. A group that is too large only grows."""
    open_ends = [(0, tuple(ready))]
    while open_ends:
        stage, free = open_ends.pop()
        for index, element in enumerate(free):
            larger = stage | 1 << element
            if max(map(len, grouped(larger))) <= limits.per_group:
                yield larger
                open_ends.append((larger, (*free[index + 1 :], *poset.released(element, done | larger))))


def groups_of(poset: Poset, stage: int) -> Groups:
    """The connected components of a stage, by their first elements."""
    groups: dict[int, list[int]] = {}
    group_of: dict[int, int] = {}
    for element in _elements(stage):
        joined = sorted({group_of[source] for source in poset.predecessors[element] if source in group_of})
        merged = sorted([*(e for number in joined for e in groups.pop(number)), element])
        groups[merged[0]] = merged
        group_of.update(dict.fromkeys(merged, merged[0]))
    return tuple(tuple(groups[number]) for number in sorted(groups))


def _by_tail(poset: Poset, elements: Sequence[int] | set[int]) -> tuple[int, ...]:
    return tuple(sorted(elements, key=lambda element: (-poset.tails[element], element)))


def _elements(stage: int) -> Iterator[int]:
    while stage:
        lowest = stage & -stage
        yield lowest.bit_length() - 1
        stage ^= lowest
