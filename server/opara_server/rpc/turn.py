"""Whose turn it is to handle calls: that of the thread that serves, or of one that has answers for many of them.

gRPC lets go of the interpreter at each operation: two threads that handled calls at once would wake each other each
time. So the thread that serves has the turn whenever it does not sleep, and gives the answers that come meanwhile
itself; another thread gives them only while there are no calls to handle.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

log = logging.getLogger(__name__)

Chore = Callable[[], bool]
"""Does what there is to do, without waiting; whether that led to more to look at."""


class Turn:
    """A lock, and what the thread that serves does once it has handled the events that there were."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chores: tuple[Chore, ...] = ()
        self._moves = 0  # how often the turn was taken, or the chores begun
        self._seen_moves = 0  # of these, when somebody asked last
        self.attended = False  # whether a thread serves that does the chores: set before any is added

    def acquire(self) -> None:
        self._lock.acquire()
        self._moves += 1

    def release(self) -> None:
        self._lock.release()

    def goes_on(self) -> bool:
        """Whether it is nobody's turn, or somebody has begun one, or the chores, since this was asked last. From one
        thread; without waiting, since who serves all the time hardly ever gives the turn away."""
        seen, self._seen_moves = self._seen_moves, self._moves
        return self._seen_moves != seen or not self._lock.locked()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def add(self, chore: Chore) -> None:
        """From now on the thread that serves does it, in its turn, before it sleeps. Any thread."""
        self._chores = (*self._chores, chore)

    def remove(self, chore: Chore) -> None:
        """It is not done any more once this returns. In one's turn."""
        self._chores = tuple(other for other in self._chores if other != chore)

    def work(self) -> bool:
        """Do the chores. In one's turn."""
        more = False
        self._moves += 1
        for chore in self._chores:
            try:
                more |= chore()
            except Exception:
                log.exception("a chore of the thread that serves failed")
        return more
