"""A model that is compiled in processes of its own, while this one does something else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from opara_server.engine.compiled import EXPORTING, MEASURING, Progress

T = TypeVar("T")


class _AbandonedError(Exception):
    pass


class Background(Generic[T]):
    """``work`` on a thread, which stops before it measures.

    ``work`` is given what compile_model takes as ``progress``. Once this is made, the module has been exported, and
    nothing more is done with it here until ``finish``.
    """

    def __init__(self, work: Callable[[Progress], T]) -> None:
        self._begin = time.perf_counter()
        self._seconds = 0.0
        self._exported, self._compiled = threading.Event(), threading.Event()
        self._turn, self._done = threading.Event(), threading.Event()
        self._abandoned = False
        self._made: list[T] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(work,), daemon=True).start()
        self._exported.wait()

    def compiled(self, timeout: float | None) -> float | None:
        """Seconds until only measuring was left; None where that is not so after ``timeout`` seconds (None: wait)."""
        return self._seconds if self._compiled.wait(timeout) else None

    def finish(self) -> T:
        """Measure, capture. Raises whatever ``work`` raises.

        The thread stays: captured kernels may be those of cuDNN's plans, which live as long as the thread that made
        them.
        """
        self._turn.set()
        self._done.wait()
        if self._error:
            raise self._error
        return self._made[0]

    def abandon(self) -> None:
        """End what goes on besides."""
        self._abandoned = True
        self._turn.set()
        self._done.wait()

    def _run(self, work: Callable[[Progress], T]) -> None:
        try:
            self._made.append(work(self._progress))
        except BaseException as error:  # noqa: BLE001 - for whoever waits for the result
            self._error = error
        finally:
            self._measure_next()
            self._done.set()
        if self._made:
            threading.Event().wait()

    def _progress(self, what: str, _share: float) -> None:
        if what.startswith(MEASURING):
            self._measure_next()
            self._turn.wait()
        elif what != EXPORTING:
            self._exported.set()
        if self._abandoned:
            raise _AbandonedError

    def _measure_next(self) -> None:
        if not self._compiled.is_set():
            self._seconds = time.perf_counter() - self._begin
        self._exported.set()
        self._compiled.set()
