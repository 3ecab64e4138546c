"""Answers on their way from the thread that has them to an event loop: one wake-up for all that come together."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from functools import partial

from opara_server.rpc.errors import Failure
from opara_server.rpc.inference import Reply

Outcome = bytes | Failure


class Replies:
    """On the event loop that is running."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._come: deque[tuple[asyncio.Future[Outcome], Outcome]] = deque()
        self._woken = False

    def expected(self) -> tuple[asyncio.Future[Outcome], Reply]:
        """What will have the answer, and whom to give it, on any thread."""
        future: asyncio.Future[Outcome] = self._loop.create_future()
        return future, partial(self._take, future)

    def _take(self, future: asyncio.Future[Outcome], outcome: Outcome) -> None:
        self._come.append((future, outcome))
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        self._woken = False  # before looking: what comes after it wakes us again
        while self._come:
            future, outcome = self._come.popleft()
            if not future.done():  # cancelled meanwhile
                future.set_result(outcome)
