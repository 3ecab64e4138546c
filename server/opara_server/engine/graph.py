"""The operator graph: what a model's forward pass executes, and what must happen before what.

Operators and buffers are plain data. Edges follow from the buffers each operator reads and writes: a reader waits for
those who wrote what it reads, a writer for those who wrote it before and for everyone who has read it since. No torch
in here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol

from opara_server.engine.matching import maximum_matching


class Kind(StrEnum):
    """Who owns a buffer, hence how long it lives."""

    INPUT = "input"  # written by the caller before a replay
    CONSTANT = "constant"  # weights and whatever is computed from weights alone: as old as the model
    ACTIVATION = "activation"  # made and last read within one replay
    OUTPUT = "output"  # made within one replay, read by the caller after it
    ARENA = "arena"  # as ACTIVATION, but there from the start: a plan, not the allocator, says in which bytes


class Parts(Protocol):
    """Which parts of a buffer operators touch."""

    def apart(self, first: int, second: int, buffer: int) -> bool:
        """Whether they touch different parts."""
        ...

    def covers(self, first: int, second: int, buffer: int) -> bool:
        """Whether the second touches every part that the first touches."""
        ...


class _Whole:
    """Every operator touches all of each of its buffers."""

    def apart(self, first: int, second: int, buffer: int) -> bool:  # noqa: ARG002
        return False

    def covers(self, first: int, second: int, buffer: int) -> bool:  # noqa: ARG002
        return True


_WHOLE = _Whole()


@dataclass(frozen=True, slots=True)
class Buffer:
    """One storage; every view of it is the same buffer. ``size`` in bytes."""

    size: int
    kind: Kind = Kind.ACTIVATION


@dataclass(frozen=True, slots=True)
class Operator:
    """One schedulable unit. ``reads`` and ``writes`` are buffer indices, in argument order."""

    name: str
    target: str
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()


class _Accesses:
    """Of one buffer: those who have written and read it, less those whom everyone waits for by way of a later one."""

    def __init__(self, buffer: int, parts: Parts) -> None:
        self._buffer = buffer
        self._parts = parts
        self._writers: list[int] = []
        self._readers: list[int] = []

    def read(self, operator: int) -> list[int]:
        """Returns whom to wait for."""
        self._readers.append(operator)
        return self._in_the_way(self._writers, operator)

    def write(self, operator: int) -> list[int]:
        """Returns whom to wait for."""
        found = [*self._in_the_way(self._writers, operator), *self._in_the_way(self._readers, operator)]
        self._writers = [*self._uncovered(self._writers, operator), operator]
        self._readers = self._uncovered(self._readers, operator)
        return found

    def _in_the_way(self, others: Iterable[int], operator: int) -> list[int]:
        return [o for o in others if o != operator and not self._parts.apart(o, operator, self._buffer)]

    def _uncovered(self, others: Iterable[int], operator: int) -> list[int]:
        return [o for o in others if not self._parts.covers(o, operator, self._buffer)]


@dataclass(frozen=True)
class OperatorGraph:
    """Operators in program order, which is a topological order, and for each its predecessors in argument order."""

    operators: tuple[Operator, ...]
    buffers: tuple[Buffer, ...]
    predecessors: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.predecessors) != len(self.operators):
            raise ValueError(f"{len(self.operators)} operators but {len(self.predecessors)} lists of predecessors")
        for index, sources in enumerate(self.predecessors):
            if any(not 0 <= source < index for source in sources):
                raise ValueError(f"operator {index} depends on {sources}: not in topological order")
            if len(set(sources)) != len(sources):
                raise ValueError(f"operator {index} names a predecessor twice: {sources}")
        for operator in self.operators:
            if any(not 0 <= buffer < len(self.buffers) for buffer in operator.reads + operator.writes):
                raise ValueError(f"{operator.name} uses a buffer that is none of the {len(self.buffers)}")

    @classmethod
    def from_accesses(
        cls, operators: Sequence[Operator], buffers: Sequence[Buffer], parts: Parts = _WHOLE
    ) -> OperatorGraph:
        """Derive the edges from each operator's reads and writes, given in program order.

        Operators that fill one tensor side by side need not wait for each other: ``parts`` knows.
        """
        accesses = [_Accesses(buffer, parts) for buffer in range(len(buffers))]
        predecessors = []
        for index, operator in enumerate(operators):
            sources: dict[int, None] = {}  # an ordered set: the first predecessor means something to Algorithm 1
            for buffer in operator.reads:
                sources.update(dict.fromkeys(accesses[buffer].read(index)))
            for buffer in operator.writes:
                sources.update(dict.fromkeys(accesses[buffer].write(index)))
            predecessors.append(tuple(sources))
        return cls(tuple(operators), tuple(buffers), tuple(predecessors))

    @classmethod
    def from_edges(cls, count: int, edges: Iterable[tuple[int, int]]) -> OperatorGraph:
        """A graph of ``count`` operators that write one buffer each, read over the given (producer, consumer) edges."""
        sources: list[dict[int, None]] = [{} for _ in range(count)]
        for producer, consumer in edges:
            sources[consumer].setdefault(producer)
        operators = tuple(Operator(f"op{i}", "test", tuple(sources[i]), (i,)) for i in range(count))
        return cls(operators, tuple(Buffer(1) for _ in range(count)), tuple(tuple(s) for s in sources))

    def __len__(self) -> int:
        return len(self.operators)

    @cached_property
    def successors(self) -> tuple[tuple[int, ...], ...]:
        """For each operator those that name it as a predecessor, in program order."""
        found: list[list[int]] = [[] for _ in self.operators]
        for operator, sources in enumerate(self.predecessors):
            for source in sources:
                found[source].append(operator)
        return tuple(tuple(f) for f in found)

    @cached_property
    def descendants(self) -> tuple[int, ...]:
        """The transitive closure: per operator a bit set of everything that must happen after it."""
        closure = [0] * len(self)
        for operator in reversed(range(len(self))):
            for successor in self.successors[operator]:
                closure[operator] |= closure[successor] | (1 << successor)
        return tuple(closure)

    @cached_property
    def width(self) -> int:
        """The largest number of pairwise independent operators (Dilworth: the fewest chains that cover the closure)."""
        adjacency = [
            [j for j in range(i + 1, len(self)) if closure >> j & 1] for i, closure in enumerate(self.descendants)
        ]
        return len(self) - len(maximum_matching(adjacency, len(self)))

    @cached_property
    def depth(self) -> int:
        """The number of operators on the longest path."""
        return int(self.longest_path([1.0] * len(self)))

    def longest_path(self, durations: Sequence[float]) -> float:
        """The largest sum of ``durations`` along any path, in their unit."""
        finish = [0.0] * len(self)
        for operator, sources in enumerate(self.predecessors):
            finish[operator] = durations[operator] + max((finish[s] for s in sources), default=0.0)
        return max(finish, default=0.0)

    def tails(self, durations: Sequence[float]) -> list[float]:
        """Per operator the longest path from its start to the end of the graph, in the unit of ``durations``."""
        tail = [0.0] * len(self)
        for operator in reversed(range(len(self))):
            tail[operator] = durations[operator] + max((tail[s] for s in self.successors[operator]), default=0.0)
        return tail

    def to_json(self) -> dict[str, Any]:
        return {
            "operators": [[o.name, o.target, list(o.reads), list(o.writes)] for o in self.operators],
            "buffers": [[b.size, b.kind.value] for b in self.buffers],
            "predecessors": [list(p) for p in self.predecessors],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> OperatorGraph:
        """The inverse of ``to_json``. Raises KeyError, TypeError or ValueError on anything else."""
        return cls(
            tuple(
                Operator(name, target, tuple(reads), tuple(writes)) for name, target, reads, writes in data["operators"]
            ),
            tuple(Buffer(size, Kind(kind)) for size, kind in data["buffers"]),
            tuple(tuple(p) for p in data["predecessors"]),
        )

    def dumps(self) -> str:
        return json.dumps(self.to_json(), separators=(",", ":"))
