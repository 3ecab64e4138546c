"""How long the thread that serves looks for more before it sleeps.

To be woken takes it as long as a small request does, and so does running with caches that others have filled meanwhile.
A caller that sends its next request soon is spared both, at the price of a processor that is busy until then.

Nor should it be woken by threads of gRPC's own, which otherwise wait for connections and read them. Without them that
thread does so itself: sooner for a lone caller, later for many, since reading does not go on beside the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable

NO_THREADS = {"GRPC_EXPERIMENTS": "-event_engine_listener"}
"""In the environment, before gRPC is imported: no threads of gRPC's for connections."""


class BusyPoll:
    """For ``seconds`` after each event; 0: not at all. ``clock``: in seconds."""

    __slots__ = ("_clock", "_seconds", "_until")

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._until = 0.0

    def begin(self) -> None:
        """An event has come."""
        if self._seconds:
            self._until = self._clock() + self._seconds

    @property
    def goes_on(self) -> bool:
        return self._seconds > 0 and self._clock() < self._until
