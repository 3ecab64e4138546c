"""Servers that end while others are measured are started again: of one that is gone there would be no more figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.serving.measuring import Running
from bench.serving.peering import MissingPeerError
from bench.serving.process import ServerError
from bench.serving.starting import start, wait_until_right

MOST_RESTARTS = 3  # of each server: one that ends again and again takes no more time than that

Tell = Callable[[str], None]


class Keeper:
    """``restarts``: how often each server, by name, was started again, or tried to be."""

    def __init__(self, cores: Sequence[int], folder: Path, stack: ExitStack, tell: Tell) -> None:
        """``folder``: for folders of its own. ``stack`` stops what it starts."""
        self.restarts: Counter[str] = Counter()
        self._cores, self._folder, self._stack, self._tell = cores, folder, stack, tell

    def standing(self, running: Running) -> Running:
        """It, or one like it in its place where it has ended. Raises ServerError where there is none to be had."""
        status = running.server.exit_status()
        if status is None:
            return running
        name = running.contestant.name
        if self.restarts[name] == MOST_RESTARTS:
            raise ServerError(f"the server ended with exit status {status}, and was started {MOST_RESTARTS + 1} times")
        self.restarts[name] += 1
        self._tell(f"{name} ended with exit status {status}: it is started again")
        running.server.stop()  # what it has left behind
        try:
            again = start(running.contestant, self._cores, self._folder / f"{name}-{self.restarts[name]}", self._stack)
        except (MissingPeerError, OSError) as error:
            raise ServerError(f"the server ended with exit status {status}: {error}") from error
        wait_until_right(again)
        return again
