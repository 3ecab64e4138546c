"""Processor sharing of two resources: the room on the multiprocessors and the memory bandwidth. No torch in here."""

from __future__ import annotations

from collections.abc import Collection

NEVER = float("inf")


class Sharing:
    """Who runs beside whom, and until when.

    An operator needs a share (0..1) of each resource to run at full speed. A resource that is too scarce for all is
    divided max-min fairly: who needs little gets what it needs, the others get equal parts. The resource of which an
    operator gets the least for its need sets its speed. Even where both suffice, caches and clocks are shared: whoever
    is not alone takes longer by ``company`` (>= 0) of its time, at least.
    """

    def __init__(self, company: float = 0.0) -> None:
        self.first = -1  # who is done next if nobody comes before that; -1 when nobody runs
        self.first_end = NEVER
        self._company = company
        self._end: dict[int, float] = {}  # at the present speeds
        self._slowdown: dict[int, float] = {}
        self._room: dict[int, float] = {}
        self._bandwidth: dict[int, float] = {}

    def join(self, now: float, operator: int, work_us: float, room: float, bandwidth: float) -> None:
        """``operator`` has ``work_us`` to do at full speed. ``now`` never goes back from call to call."""
        self._end[operator] = now + work_us
        self._slowdown[operator] = 1.0
        self._room[operator] = room
        self._bandwidth[operator] = bandwidth
        self._divide(now)

    def leave(self, now: float, operator: int) -> None:
        del self._end[operator], self._slowdown[operator], self._room[operator], self._bandwidth[operator]
        self._divide(now)

    def _divide(self, now: float) -> None:
        if len(self._end) > 1:
            room, bandwidth = fair_part(self._room.values()), fair_part(self._bandwidth.values())
            least = slowdown = 1.0 + self._company
        else:
            room = bandwidth = least = slowdown = 1.0
        scarce = room < 1.0 or bandwidth < 1.0
        self.first, self.first_end = -1, NEVER
        for operator, before in self._slowdown.items():
            if scarce:
                slowdown = max(least, self._room[operator] / room, self._bandwidth[operator] / bandwidth)
            end = self._end[operator]
            if slowdown != before:
                end = now + (end - now) * (slowdown / before)
                self._end[operator], self._slowdown[operator] = end, slowdown
            if end < self.first_end:
                self.first, self.first_end = operator, end


def fair_part(needs: Collection[float]) -> float:
    """The most that anybody gets of a resource of 1 (max-min fairness): 1 where there is enough for all ``needs``."""
    if sum(needs) <= 1.0:
        return 1.0
    left, waiting = 1.0, len(needs)
    for need in sorted(needs):
        if need * waiting > left:
            return left / waiting
        left -= need
        waiting -= 1
    return 1.0
