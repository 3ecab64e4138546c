"""How many of PyTorch's threads operators should use on the CPU: several or one alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

PATIENCE, LEAST_PATIENCE_S = 3, 0.1
WORTH = 0.85  # of the time with one: what several, on cores that others may need, must not exceed


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Operators that this thread runs use so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TooSlow(Exception):  # noqa: N818 - it is no error
    """Several threads have lost against one."""


class Patience:
    """From now on, with several threads, for what one alone does in ``alone_s``: with other work on the cores threads
    wait for each other, and a run may take a thousand times as long. To be called after each operator; raises TooSlow.
    """

    def __init__(self, alone_s: float) -> None:
        self._end = time.perf_counter() + max(LEAST_PATIENCE_S, PATIENCE * alone_s)

    def __call__(self, *_observed: object) -> None:
        if time.perf_counter() > self._end:
            raise TooSlow


def faster(threads: int, seconds_with: Callable[[int, Patience | None], Sequence[float]]) -> int:
    """``threads``, or 1 where that is about as fast. ``seconds_with``: of a few runs, each with so many; the first is
    to warm up, and Patience ends them."""
    if threads == 1:
        return 1
    alone = seconds_with(1, None)
    try:
        together = seconds_with(threads, Patience(sum(alone)))
    except TooSlow:
        return 1
    better = (usual(together[1:]) <= WORTH * usual(alone[1:]) for usual in (statistics.median, min))  # not by chance
    return threads if all(better) else 1
