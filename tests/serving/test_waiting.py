"""What is cancelled leaves the queue at once for who counts, and soon for the memory."""

from __future__ import annotations

from random import Random

from opara_server.serving.limits import Limits
from opara_server.serving.pace import Pace
from opara_server.serving.packing import Packing
from opara_server.serving.ticket import Ticket
from opara_server.serving.waiting import Waiting
from tests.serving.fakes import Answer, rows_of


class NoBatcher:
    def cancel(self, ticket: Ticket) -> None:
        raise AssertionError(ticket)


def waiting_tickets(waiting: Waiting, count: int) -> list[Ticket]:
    tickets = [Ticket(NoBatcher(), rows_of(1), None, Answer(), 0.0) for _ in range(count)]
    for ticket in tickets:
        waiting.add(ticket, 0)
    return tickets


def drop(waiting: Waiting, ticket: Ticket) -> None:
    ticket.settled = True
    waiting.drop(ticket)


def test_cancelled_requests_never_are_more_than_half_of_what_is_kept() -> None:
    waiting = Waiting(Limits((1, 8), 8, 10_000), Pace((1, 8)))
    random = Random(0)
    level = waiting.levels[0]
    for _ in range(50):
        tickets = waiting_tickets(waiting, 20)
        for ticket in random.sample(tickets, 15):
            drop(waiting, ticket)
        waiting.take(Packing(Pace((1, 8)), 8, min(waiting.rows, 8), 0.0))
        kept = list(level.tickets)
        assert level.dropped == sum(ticket.settled for ticket in kept) <= len(kept) / 2
        assert waiting.rows == level.rows == sum(ticket.left for ticket in kept if not ticket.settled)


def test_a_queue_of_cancelled_requests_keeps_none() -> None:
    waiting = Waiting(Limits((1, 8), 8, 10_000), Pace((1, 8)))
    for ticket in waiting_tickets(waiting, 100):
        drop(waiting, ticket)
    assert (len(waiting.levels[0].tickets), waiting.rows) == (0, 0)
