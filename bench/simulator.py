"""How well the simulator predicts: measures random schedules and those of the policies, and judges it by them.

    python -m bench.simulator --batches 1,8 --time-limit-s 500

Per model, bucket and lowering one file of operator graph, profile, schedules and measured times in
``bench/data/schedules``, from which ``bench.prediction`` makes the table, now and after any change to the simulator.
Each model and bucket has a process of its own (``bench.schedule_times``): many compile side by side, then one after the
other is measured. What is there is not measured again: a run can be cut off and gone on with.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.cells import CellKey
from bench.child import Child, Job
from bench.gpus import cells_at_once
from bench.models import require_packages
from bench.prediction import load, record_path, report
from bench.selection import ALL_MODELS, REQUIRED_MODELS
from opara_server.engine.options import ATEN, FUSED
from opara_server.engine.simulate import Latency

WINNER = "fused_rewritten"  # what the engine chooses nearly everywhere
MEASURING_SECONDS = 20.0  # per cell, kept free at the end


@dataclass(frozen=True)
class ScheduleJob(Job):
    """``systems`` are lowerings. ``schedules``: how many random ones of each."""

    schedules: int = 24

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "bench.schedule_times", self.cell.model, self.cell.dtype, str(self.cell.batch)),
            *(part for lowering in self.systems for part in ("--lowering", lowering)),
            *("--folder", str(self.folder.absolute()), "--device", self.device),
            *("--schedules", str(self.schedules), "--seconds", str(self.seconds)),
        ]


def main(
    models: Annotated[str, typer.Option(help='Names with commas, or "all". Default: the required seven.')] = "",
    batches: str = "1,8",
    lowerings: Annotated[str, typer.Option(help="With commas.")] = WINNER,
    dtype: str = "float16",
    device: str = "cuda",
    schedules: Annotated[int, typer.Option(help="Random ones per model, bucket and lowering.")] = 24,
    seconds: Annotated[float, typer.Option(help="Of measuring, per schedule.")] = 0.06,
    time_limit_s: Annotated[float, typer.Option(help="Be done by then, with what there is. 0: no limit.")] = 0.0,
    jobs: Annotated[int, typer.Option(min=0, help="Processes that compile at once. 0: as there is room for.")] = 0,
    data: Path = Path("bench/data/schedules"),
    cache: Annotated[Path, typer.Option(help="Of what Inductor compiled, and of logs.")] = Path(".opara-cache/bench"),
    output: Path = Path("bench/results/simulator.json"),
) -> None:
    """Measure what is missing, then judge the simulator by all that is there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("PyTorch sees no GPU here; --device cpu measures what needs none")
    names = lowerings.split(",")
    if unknown := [name for name in names if name not in {ATEN, *FUSED}]:
        raise typer.BadParameter(f"unknown lowering {unknown[0]!r}: {', '.join((ATEN, *FUSED))}")
    deadline = time.time() + time_limit_s if time_limit_s else None
    chosen = ALL_MODELS if models == "all" else models.split(",") if models else REQUIRED_MODELS
    cells = [CellKey(model, dtype, int(batch)) for batch in batches.split(",") for model in chosen]
    missing = {cell: tuple(name for name in names if not _path(data, cell, name).exists()) for cell in cells}
    todo = [cell for cell in cells if missing[cell]]
    require_packages(cell.model for cell in todo)
    processors = len(os.sched_getaffinity(0))
    at_once = jobs or cells_at_once(device, processors)
    for first in range(0, len(todo), at_once):
        together = todo[first : first + at_once]
        made = [
            ScheduleJob(
                cell=cell,
                systems=missing[cell],
                device=device,
                folder=data,
                cache=cache.absolute() / f"schedules-{cell.stem}",
                seconds=seconds,
                counter_seconds=0.0,
                tuning_budget_s=0.0,
                studies=False,
                threads=max(1, processors // len(together)),
                gpu="",
                compile_until=None,
                schedules=schedules,
            )
            for cell in together
        ]
        run_together(made, deadline, typer.echo)
    records = [load(path) for path in sorted(data.glob("*.json.gz"))]
    if records:
        typer.echo(report(records, Latency(), output))


def run_together(jobs: Sequence[Job], deadline: float | None, tell: Callable[[str], None]) -> None:
    """All compile, then one after the other measures; what is not done by ``deadline`` (on time.time()) is told of."""
    if deadline is not None and deadline - time.time() < MEASURING_SECONDS * len(jobs):
        for job in jobs:
            tell(f"{job.cell}: not run, no time left")
        return
    children = [Child(job, job.cache.with_name(job.cache.name + ".log")) for job in jobs]
    try:
        for child in children:
            child.limit(None if deadline is None else deadline - time.time() - MEASURING_SECONDS * len(jobs))
        # Nobody measures before all have compiled: what the host drives wants idle processors.
        with ThreadPoolExecutor(len(children)) as pool:
            list(pool.map(partial(_compiled, deadline=deadline), children))
        for child in children:
            tell(f"{child.job.cell}: {child.measure() or 'measured'}")
    finally:
        for child in children:
            child.close()


def _compiled(child: Child, deadline: float | None) -> None:
    """Wait until it has, or has ended; from then on it may take until ``deadline``."""
    child.wait_until_ready()
    if not child.timed_out:
        child.limit(None if deadline is None else deadline - time.time())


def _path(folder: Path, cell: CellKey, lowering: str) -> Path:
    return record_path(folder, cell.model, lowering, cell.dtype, cell.batch)


if __name__ == "__main__":
    typer.run(main)
