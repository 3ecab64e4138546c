"""A request that breaks its model's queue, as an error of ours might."""

from __future__ import annotations

import pytest

from opara_server.serving.packing import Packing
from opara_server.serving.ticket import Ticket

POISON = 7  # rows


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a request of POISON rows is an error in the midst of packing a batch."""
    takes = Packing.takes

    def poisoned(packing: Packing, ticket: Ticket) -> bool:
        if ticket.rows.count == POISON:
            raise KeyError("an error of ours")
        return takes(packing, ticket)

    monkeypatch.setattr(Packing, "takes", poisoned)
