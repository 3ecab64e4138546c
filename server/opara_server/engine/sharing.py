"""Processor sharing of two resources: the room on the multiprocessors and the memory bandwidth. No torch in here."""

from __future__ import annotations

from collections.abc import Collection

NEVER = float("inf")


class Sharing:
    """Who runs beside whom, and until when.

    An operator needs a share (0..1) of each resource to run at full speed. While the shares of room add up to more than
    1, all run slower by that factor: blocks take turns. Bandwidth is divided max-min fairly: who needs little gets all
    of it, the others get equal parts. What is scarcer for an operator sets its speed.
    """

    def __init__(self) -> None:
        self._ends: dict[int, float] = {}  # at the present speeds
        self._slowdown: dict[int, float] = {}
        self._room: dict[int, float] = {}
        self._bandwidth: dict[int, float] = {}
        self._scarce = False  # whether anybody is slowed down
        self.first = -1  # who is done next if nobody comes before that; -1 when nobody runs
        self.first_end = NEVER

    def join(self, now: float, operator: int, work_us: float, room: float, bandwidth: float) -> None:
        """``operator`` has ``work_us`` to do at full speed. ``now`` never goes back from call to call."""
        self._ends[operator] = now + work_us
        self._slowdown[operator] = 1.0
        self._room[operator] = room
        self._bandwidth[operator] = bandwidth
        self._changed(now)

    def leave(self, now: float, operator: int) -> None:
        for kept in (self._ends, self._slowdown, self._room, self._bandwidth):
            del kept[operator]
        self._changed(now)

    def _changed(self, now: float) -> None:
        self._divide(now)
        self.first = min(self._ends, key=self._ends.__getitem__, default=-1)
        self.first_end = self._ends.get(self.first, NEVER)

    def _divide(self, now: float) -> None:
        crowd = max(1.0, sum(self._room.values()))
        enough = sum(self._bandwidth.values()) <= crowd  # crowded ones ask for less per µs
        if enough and crowd == 1.0 and not self._scarce:
            return
        self._scarce = crowd > 1.0 or not enough
        part = 1.0 if enough else fair_part([share / crowd for share in self._bandwidth.values()])
        for operator, before in self._slowdown.items():
            slowdown = max(crowd, self._bandwidth[operator] / part)
            self._ends[operator] = now + (self._ends[operator] - now) * (slowdown / before)
            self._slowdown[operator] = slowdown


def fair_part(demands: Collection[float]) -> float:
    """The most that anybody gets of a resource of 1 when ``demands`` together exceed it (max-min fairness)."""
    left = 1.0
    for waiting, demand in zip(range(len(demands), 0, -1), sorted(demands), strict=True):
        if demand * waiting >= left:
            return left / waiting
        left -= demand
    raise ValueError(f"demands of {sum(demands)} do not exceed the resource")
