"""An end to work that knows none: compilers may take minutes, and have no time limit of their own."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_S = 5.0  # a compiler may take the first interruption for a failure of one of its attempts


class OutOfTimeError(BaseException):
    """No Exception: compilers catch these, and go on."""


@contextmanager
def interrupted_at(when: float | None) -> Iterator[None]:
    """Raise OutOfTimeError inside once it is ``when`` (on time.time(); None: never), and again until the block is left.

    The main thread's only, between two lines of Python.
    """
    if when is None:
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(when - time.time(), 1e-6), AGAIN_S)
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:  # an interruption may come right here, the next one not
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
