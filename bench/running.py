"""A group of cells, run: all compile side by side, then one after the other is measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from bench.cells import Cell, load_cell, save_cell
from bench.child import Child, Job

GRACE_SECONDS = 30.0  # for a process that has stopped compiling until it is ready

Environment = Mapping[str, str | int]
Tell = Callable[[str], None]


class Crew:
    """The processes of a run, wherever they were started: leaving it early ends them all, and no more are started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: list[Child] = []
        self._dismissed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._dismissed = True
            for child in self._children:
                child.cut_off()

    def start(self, job: Job) -> Child:
        """Raises InterruptedError once the crew has been left."""
        with self._lock:
            if self._dismissed:
                raise InterruptedError
            child = Child(job, job.cache.with_name(job.cache.name + ".log"))
            self._children.append(child)
        return child

    def close(self, child: Child) -> None:
        """End it, if it has not ended."""
        child.close()
        with self._lock:
            self._children.remove(child)


def run_group(crew: Crew, jobs: Sequence[Job], deadline: float | None, here: Environment, tell: Tell) -> None:
    """All of one lane. What fails is saved as a cell that says why; what is cut off at ``deadline`` (on time.time()),
    or has not compiled by its own time, leaves no trace."""
    before = {job.cell: load_cell(job.folder, job.cell) for job in jobs}
    children = [_started(crew, job, deadline) for job in jobs]
    try:
        # Nobody measures before all have compiled: what the host drives wants idle processors.
        with ThreadPoolExecutor(len(children)) as pool:
            list(pool.map(lambda child: _wait_until_ready(child, deadline), children))
        for child in children:
            _measure(child, before[child.job.cell], here, tell)
    finally:
        for child in children:
            crew.close(child)


def summary(cell: Cell, wanted: Sequence[str] = ()) -> str:
    """One line, in µs; and which of the ``wanted`` systems were not run."""
    if cell.failed:
        return f"{cell.key}: failed, {cell.failed}"
    times = [f"{name} {result.time_us:.1f}" for name, result in cell.systems.items() if result.time_us]
    wrong = [name for name, result in cell.systems.items() if result.verified is False]
    late = [name for name in wanted if name not in cell.systems]
    seconds = f"{cell.seconds['compile']:.0f} + {cell.seconds['alone']:.0f} s"
    line = f"{cell.key} ({seconds}): {', '.join(times)}"
    return line + _listed("; WRONG: ", wrong) + _listed("; not run: ", late)


def _started(crew: Crew, job: Job, deadline: float | None) -> Child:
    child = crew.start(job)
    times = [None if job.compile_until is None else job.compile_until + GRACE_SECONDS, deadline]
    child.limit(min((left for left in map(_left, times) if left is not None), default=None))
    return child


def _wait_until_ready(child: Child, deadline: float | None) -> None:
    """Its time to compile ends with that: those that are late may take longer than they should."""
    child.wait_until_ready()
    child.limit(_left(deadline))


def _measure(child: Child, before: Cell | None, here: Environment, tell: Tell) -> None:
    """``before``: what was there when it started."""
    key, folder = child.job.cell, child.job.folder
    failure = child.measure()
    made = load_cell(folder, key)
    if made is None or made == before:  # a process that fails after it has saved has done its work
        if child.timed_out:
            tell(f"{key}: not run, cut off by the time limit")
            return
        made = Cell(key, here, failed=failure or "left no result")
        save_cell(folder, made)
    tell(summary(made, child.job.systems))


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.time()


def _listed(label: str, names: Sequence[str]) -> str:
    return label + ", ".join(names) if names else ""
