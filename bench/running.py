"""A group of cells, run: all compile side by side, then every GPU measures its own, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.cells import Cell, CellKey, load_cell, save_cell
from bench.child import Child, Job

GRACE_SECONDS = 30.0  # for a process that has stopped compiling until it is ready

Environment = Mapping[str, str | int]
Tell = Callable[[str], None]


def run_group(shares: Sequence[Sequence[Job]], deadline: float | None, here: Environment, tell: Tell) -> None:
    """``shares``: by GPU. What fails is saved as a cell that says why; what is cut off at ``deadline`` (on
    time.time()), or has not compiled by its own time, leaves no trace."""
    before = {job.cell: load_cell(job.folder, job.cell) for share in shares for job in share}
    children = [[_started(job, deadline) for job in share] for share in shares]
    together = [child for share in children for child in share]
    try:
        # Nobody measures before all have compiled: what the host drives wants idle processors.
        for child in together:
            child.wait_until_ready()
        for child in together:
            child.limit(_left(deadline))
        with ThreadPoolExecutor(max(1, len(children))) as pool:
            list(pool.map(lambda share: _measure_all(share, before, here, tell), children))
    finally:
        for child in together:
            child.close()


def summary(cell: Cell, wanted: Sequence[str] = ()) -> str:
    """One line, in µs; and which of the ``wanted`` systems were not run."""
    if cell.failed:
        return f"{cell.key}: failed, {cell.failed}"
    times = [f"{name} {result.median_us:.1f}" for name, result in cell.systems.items() if result.median_us]
    wrong = [name for name, result in cell.systems.items() if result.verified is False]
    late = [name for name in wanted if name not in cell.systems]
    seconds = f"{cell.seconds['compile']:.0f} + {cell.seconds['alone']:.0f} s"
    line = f"{cell.key} ({seconds}): {', '.join(times)}"
    return line + _listed("; WRONG: ", wrong) + _listed("; not run: ", late)


def _started(job: Job, deadline: float | None) -> Child:
    child = Child(job, job.cache.with_name(job.cache.name + ".log"))
    times = [None if job.compile_until is None else job.compile_until + GRACE_SECONDS, deadline]
    child.limit(min((left for left in map(_left, times) if left is not None), default=None))
    return child


def _measure_all(share: Sequence[Child], before: Mapping[CellKey, Cell | None], here: Environment, tell: Tell) -> None:
    """``before``: what was there when they started."""
    for child in share:
        key, folder = child.job.cell, child.job.folder
        failure = child.measure()
        made = load_cell(folder, key)
        if made is None or made == before[key]:  # a process that fails after it has saved has done its work
            if child.timed_out:
                tell(f"{key}: not run, cut off by the time limit")
                continue
            made = Cell(key, here, failed=failure or "left no result")
            save_cell(folder, made)
        tell(summary(made, child.job.systems))


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.time()


def _listed(label: str, names: Sequence[str]) -> str:
    return label + ", ".join(names) if names else ""
