"""Limits of processes that end when a test says so, and not with the time."""

from __future__ import annotations

from collections.abc import Callable


class Limits:
    """To stand for ``bench.child.Timer``. ``made``: all limits, in the order in which they were set."""

    def __init__(self) -> None:
        self.made: list[Limit] = []

    def __call__(self, seconds: float, function: Callable[[], None]) -> Limit:
        self.made.append(Limit(seconds, function))
        return self.made[-1]

    @property
    def lifted(self) -> int:
        """How many count no more."""
        return sum(limit.cancelled for limit in self.made)

    def end(self) -> None:
        """The time of all that count is up."""
        for limit in list(self.made):
            limit.end()


class Limit:
    daemon = False

    def __init__(self, seconds: float, function: Callable[[], None]) -> None:
        self.seconds, self._function = seconds, function
        self.cancelled = False

    def start(self) -> None:
        """It ends when the test says so."""

    def cancel(self) -> None:
        self.cancelled = True

    def end(self) -> None:
        if not self.cancelled:
            self._function()
