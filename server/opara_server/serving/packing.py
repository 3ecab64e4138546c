"""One batch while it is put together: whole requests in order, as many rows as measured times make worth while."""

from __future__ import annotations

from math import inf

from opara_server.serving.pace import Pace
from opara_server.serving.ticket import Piece, Ticket


class Packing:
    """``pieces`` hold ``rows`` rows; ``late`` are the requests that were met and refused.

    A request is split only if it is larger than the largest bucket, and then fills what room is left, or if measured
    times say that it is answered sooner in parts.
    """

    __slots__ = ("_horizon", "_largest", "_pace", "_room", "_tightest", "_waiting", "late", "now", "pieces", "rows")

    def __init__(self, pace: Pace, largest: int, waiting: int, now: float) -> None:
        """``waiting``: how many rows there are for it, at least 1 and at most ``largest``."""
        self.now = now
        self.pieces: list[Piece] = []
        self.rows = 0
        self.late: list[Ticket] = []
        self._pace = pace
        self._largest = largest
        self._waiting = waiting
        self._room = pace.bucket(pace.first(waiting))  # what would be padding is free
        self._horizon = now + pace.longest  # no batch makes a later deadline pass
        self._tightest = inf  # of the deadlines before the horizon

    def takes(self, ticket: Ticket) -> bool:
        """Add as much of it as there is room for. True: that was the last of it; else nobody may overtake it."""
        taken, rows = ticket.taken, self.rows
        left = count = ticket.rows.count - taken
        if left > self._room - rows:
            count = self._part(left)
            if not count:
                return False
        if ticket.deadline < self._horizon or self._tightest < inf:
            tightest = min(self._tightest, ticket.deadline)
            if rows and self.now + self._pace.together(rows + count) > tightest:
                self._complete()  # together in a larger bucket, one of them would be late
                return False
            self._tightest = tightest
        self.pieces.append(Piece(ticket, taken, count))
        self.rows = rows + count
        ticket.taken = taken + count
        if count < left and not taken:
            ticket.parts = []
        return count == left

    def refuses(self, ticket: Ticket) -> bool:
        """Settle it if it is late. One that has begun has left the queue: only its deadline counts."""
        waited_too_long = not ticket.taken and self.now > ticket.start_by
        if not waited_too_long and self.now + self._pace.shortest(ticket.left) <= ticket.deadline:
            return False
        ticket.settled = True
        self.late.append(ticket)
        return True

    def undone(self) -> list[Ticket]:
        """All that it met and nobody was told of; who was late is so no more."""
        for ticket in self.late:
            ticket.settled = False
        return [*self.late, *(piece.ticket for piece in self.pieces)]

    def _part(self, left: int) -> int:
        """How many to take of so many rows, which the room does not hold."""
        if left > self._largest:
            return self._room - self.rows
        if not self.rows:
            count = self._pace.first(left)
            self._room = max(self._room, self._pace.bucket(count))
            return count
        if self.rows >= self._waiting or self._pace.parted(self.rows, self._waiting):
            return self._complete()
        self._room = self._largest
        return left if left <= self._room - self.rows else self._complete()

    def _complete(self) -> int:
        """Nobody goes in any more, of lower levels either, though there be padding. Returns 0."""
        self._waiting = 0
        self._room = self.rows
        return 0
