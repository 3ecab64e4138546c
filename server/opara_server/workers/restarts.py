"""How often a process that dies is started again."""

from __future__ import annotations

import time
from collections.abc import Callable

_FIRST_S, _LONGEST_S = 0.1, 10.0
_MOST = 6  # in a row
_GOOD_S = 30.0  # one that ran for so long was no failure


class Restarts:
    """Of one process: more and more slowly, until it is given up."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._began = clock()

    def began(self) -> None:
        self._began = self._clock()

    def wait_s(self) -> float | None:
        """It has ended: how long to wait before it is started again; None: it is not worth while."""
        if self._clock() - self._began >= _GOOD_S:
            self._failures = 0
        self._failures += 1
        if self._failures > _MOST:
            return None
        return min(_FIRST_S * 4.0 ** (self._failures - 1), _LONGEST_S)
