"""The requests of one model that wait, by level of priority, and which of them the next batch takes.

Levels are served in strict order: a batch takes from one only what the higher ones leave room for. That alone would
let a steady stream of urgent requests keep others waiting for ever. So a level that waited while PATIENCE batches in
a row took nothing of it has its first request put at the head of the next batch (of several such levels, the one
passed over most often first). A level that waits is thus served once in PATIENCE + L batches, where L is how many
levels there are, whatever the others send; and what urgent requests pay for it is bounded too: room for L requests in
so many batches. Within a level nobody overtakes.

No locks and no clock: the batcher has them.
"""

from __future__ import annotations

from collections import deque

from opara_server.serving.limits import Limits
from opara_server.serving.pace import Pace
from opara_server.serving.packing import Packing
from opara_server.serving.ticket import Ticket

PATIENCE = 16  # batches


class Level:
    """One level's queue, first come first served. What is settled meanwhile stays in it until its turn, or until it is
    half of the queue: so taking it out needs no search."""

    __slots__ = ("dropped", "passed", "rows", "tickets")

    def __init__(self) -> None:
        self.tickets: deque[Ticket] = deque()
        self.rows = 0  # of those not settled, less what batches have taken
        self.dropped = 0
        self.passed = 0  # batches in a row that took nothing of it while it waited


class Waiting:
    """All levels of one model. ``rows`` wait."""

    def __init__(self, limits: Limits, pace: Pace) -> None:
        self._pace = pace
        self.levels = tuple(Level() for _ in limits.level_rows or (limits.max_queue_rows,))
        self.rows = 0

    def add(self, ticket: Ticket, level: int) -> None:
        """``level`` counts from 0."""
        ticket.level = level
        queue, count = self.levels[level], ticket.rows.count
        if not queue.rows:
            queue.passed = 0  # who was passed over has left
        queue.tickets.append(ticket)
        queue.rows += count
        self.rows += count

    def drop(self, ticket: Ticket) -> None:
        """Forget a request that was just settled, so far as it waits."""
        if not ticket.left:
            return
        level = self.levels[ticket.level]
        level.rows -= ticket.left
        self.rows -= ticket.left
        level.dropped += 1
        if 2 * level.dropped > len(level.tickets):
            level.tickets = deque(t for t in level.tickets if not t.settled)
            level.dropped = 0

    def tickets(self) -> list[Ticket]:
        return [ticket for level in self.levels for ticket in level.tickets if not ticket.settled]

    def busy(self, level: int, rows: int) -> float:
        """At least so many seconds the device is kept by a request of ``rows`` that comes now and by what goes before
        it: all that waits at its level, and of the higher ones what is sure to run before its level's patience ends."""
        own = self._pace.busy(self.levels[level].rows + rows)
        if not level:
            return own
        higher = self._pace.busy(sum(above.rows for above in self.levels[:level]))
        return own + min(higher, max(PATIENCE - self.levels[level].passed, 0) * self._pace.shortest_replay)

    def take(self, packing: Packing) -> None:
        """Put into it what the next batch runs, and who is too late for it."""
        several = len(self.levels) > 1
        if several:
            for level in sorted(self.levels, key=lambda level: level.passed, reverse=True):
                if level.passed >= PATIENCE and level.rows:
                    self._move(level, packing, requests=1)
        for level in self.levels:
            self._move(level, packing, requests=len(level.tickets))
        if several and packing.pieces:
            served = {piece.ticket.level for piece in packing.pieces}
            for index, level in enumerate(self.levels):
                level.passed = 0 if index in served or not level.rows else level.passed + 1

    def _move(self, level: Level, packing: Packing, requests: int) -> None:
        """Up to so many of the level's first requests, as far as there is room; those that are late or settled are
        taken out, but do not count."""
        tickets, before, now = level.tickets, packing.rows, packing.now
        while requests and tickets:
            ticket = tickets[0]
            if (ticket.settled or now > ticket.suspect_at) and self._gone(level, ticket, packing):
                tickets.popleft()
                continue
            if not packing.takes(ticket):
                break
            tickets.popleft()
            requests -= 1
        level.rows -= packing.rows - before
        self.rows -= packing.rows - before

    def _gone(self, level: Level, ticket: Ticket, packing: Packing) -> bool:
        """Whether there is nothing to run: it was settled, or it is late, and is settled now."""
        if ticket.settled:
            level.dropped -= 1
            return True
        if packing.now <= ticket.suspect_at or not packing.refuses(ticket):
            return False
        level.rows -= ticket.left
        self.rows -= ticket.left
        return True
