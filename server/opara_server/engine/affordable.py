"""A launch order that a limit on memory allows, as near as can be to one that it does not. No torch in here."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from opara_server.engine.arena import rounded
from opara_server.engine.graph import OperatorGraph
from opara_server.engine.memory import arena_users


def affordable_order(graph: OperatorGraph, preferred: Sequence[int], capacity: int) -> tuple[int, ...]:
    """A topological order in which the ARENA buffers in use never take more than ``capacity`` bytes.

    ``preferred``: a topological order. Of what is ready the first goes next after which all that is left could still
    run in program order: the banker's algorithm (Dijkstra, 1965). ValueError where program order itself needs more.
    """
    bank = _Bank(graph, capacity)
    place = {operator: number for number, operator in enumerate(preferred)}
    missing = [len(sources) for sources in graph.predecessors]
    ready = sorted((place[operator], operator) for operator, count in enumerate(missing) if count == 0)
    order = []
    while ready:
        refused = []
        while not bank.can_afford(ready[0][1]):
            refused.append(heappop(ready))
        _, operator = heappop(ready)
        bank.run(operator)
        order.append(operator)
        for item in refused:
            heappush(ready, item)
        for successor in graph.successors[operator]:
            missing[successor] -= 1
            if missing[successor] == 0:
                heappush(ready, (place[successor], successor))
    return tuple(order)


class _Bank:
    """Who has run, and how many bytes would be in use at each of the others if they ran in program order now."""

    def __init__(self, graph: OperatorGraph, capacity: int) -> None:
        self._capacity = capacity
        users = arena_users(graph, range(len(graph)))
        self._size = {buffer: rounded(graph.buffers[buffer].size) for buffer in users}
        self._left = {buffer: set(of_one) for buffer, of_one in users.items()}  # users that have not run
        self._used: dict[int, list[int]] = {}
        for buffer, of_one in users.items():
            for operator in of_one:
                self._used.setdefault(operator, []).append(buffer)
        self._held: set[int] = set()  # buffers, with users that have run and others that have not
        self._done = [False] * len(graph)
        self._first = 0  # in program order of those that have not run
        self._need = [0] * len(graph)
        for buffer, of_one in users.items():
            for operator in range(of_one[0], of_one[-1] + 1):
                self._need[operator] += self._size[buffer]
        if max(self._need, default=0) > capacity:
            raise ValueError(f"{capacity} bytes are too few for the operators in program order")

    def can_afford(self, operator: int) -> bool:
        """Whether there is room for it now, and afterwards for all others in program order. The first of them can
        always be afforded."""
        if operator == self._first:
            return True
        new = sum(self._size[buffer] for buffer in self._used.get(operator, ()) if buffer not in self._held)
        if sum(self._size[buffer] for buffer in self._held) + new > self._capacity:
            return False
        return all(
            self._done[other] or self._need[other] + change <= self._capacity
            for other, change in enumerate(self._changes(operator), self._first)
        )

    def run(self, operator: int) -> None:
        for other, change in enumerate(self._changes(operator), self._first):
            self._need[other] += change
        for buffer in self._used.get(operator, ()):
            self._left[buffer].remove(operator)
            (self._held.add if self._left[buffer] else self._held.discard)(buffer)
        self._done[operator] = True
        while self._first < len(self._done) and self._done[self._first]:
            self._first += 1

    def _changes(self, operator: int) -> list[int]:
        """What running it now adds to the need of those before it in program order, beginning with the first."""
        changes = [0] * (operator - self._first)
        for buffer in self._used.get(operator, ()):
            left = self._left[buffer]
            if buffer not in self._held:  # it is begun earlier
                for number in range(min(left) - self._first):
                    changes[number] += self._size[buffer]
            if max(left) == operator:  # it is done with earlier
                last = max((other for other in left if other != operator), default=-1)
                for number in range(max(0, last + 1 - self._first), len(changes)):
                    changes[number] -= self._size[buffer]
        return changes
