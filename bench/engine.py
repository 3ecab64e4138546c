"""The benchmark suite: every system on every model, side by side.

    python -m bench.engine --time-limit-s 540

Each cell group (a model at one dtype and batch size) is measured in a process of its own, by ``bench.cell``, and saved
as one JSON file. What is there already, from the same machine and versions, is not measured again: a run can be cut off
and gone on with. Afterwards ``bench.report`` makes tables and plots of all that is there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from bench.cells import Cell, CellKey, is_current, load_cell, load_cells, save_cell
from bench.child import Child, Job
from bench.environment import environment
from bench.report import write_report
from bench.selection import choose_cells, systems_for
from bench.systems import SYSTEMS

RESULTS = Path(__file__).parent / "results"
CAUTION = 1.15  # by how much a cell may take longer than one like it before


def main(
    only: Annotated[list[str] | None, typer.Option(help="A cell, as model:dtype:batch; may be repeated.")] = None,
    models: Annotated[str, typer.Option(help='Names with commas, or "all". Default: the required seven.')] = "",
    dtypes: Annotated[str, typer.Option(help="Default with --batches: both.")] = "",
    batches: Annotated[str, typer.Option(help="Default with --dtypes: 1, 2, 4, 8, 16, 32.")] = "",
    systems: Annotated[str, typer.Option(help="Default: all, max-autotune for two cells only.")] = "",
    device: str = "cuda",
    output: Annotated[Path, typer.Option(help="Folder of the cells.")] = RESULTS / "engine",
    reports: Annotated[Path, typer.Option(help="Folder of tables and plots.")] = RESULTS,
    cache: Annotated[Path, typer.Option(help="Of what Inductor compiled, and of logs.")] = Path(".opara-cache/bench"),
    time_limit_s: Annotated[float, typer.Option(help="Start no cell that would not be done by then. 0: none.")] = 0.0,
    jobs: Annotated[int, typer.Option(min=1, help="Cells that compile at once; each is tuned and timed alone.")] = 1,
    seconds: Annotated[float, typer.Option(help="Of timing, per system and cell.")] = 0.3,
    counter_seconds: Annotated[float, typer.Option(help="Of reading the SM counters, per system and cell.")] = 0.2,
    tuning_budget_s: Annotated[float, typer.Option(help="Of this engine, per cell.")] = 60.0,
    studies: Annotated[bool, typer.Option("--studies", help="In every cell, not in float16 ×1 alone.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Measure what is there already, too.")] = False,
) -> None:
    """Measure, then write tables and plots."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    deadline = time.monotonic() + time_limit_s if time_limit_s else None
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("PyTorch sees no GPU here; --device cpu measures what needs none")
    try:
        cells = choose_cells(only or (), _split(models), _split(dtypes), [int(size) for size in _split(batches)])
        wanted = {cell: systems_for(cell, _split(systems), SYSTEMS) for cell in cells}
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    here = environment() | {"device": device}
    todo = [cell for cell in cells if force or not is_current(load_cell(output, cell), here, wanted[cell])]
    console.print(f"{len(cells)} cells, {len(cells) - len(todo)} of them there already")

    def job(cell: CellKey, together: int) -> Job:
        return Job(
            cell=cell,
            systems=_with_earlier(wanted[cell], load_cell(output, cell)),
            device=device,
            folder=output,
            cache=cache.absolute() / cell.stem,
            seconds=seconds,
            counter_seconds=counter_seconds,
            tuning_budget_s=tuning_budget_s,
            warm=jobs > 1,
            studies=studies or (cell.dtype, cell.batch) == ("float16", 1),
            threads=max(1, (os.cpu_count() or 1) // together),
        )

    while todo:
        group = next_group(todo, load_cells(output).values(), jobs, _left(deadline))
        if not group:
            break
        run_together([job(cell, len(group)) for cell in group], deadline, here, console.print)
        todo = todo[len(group) :]
    for cell in todo:
        console.print(f"{cell}: not run, no time left")
    write_report(output, reports)
    console.print(f"tables and plots are in {reports}")


@dataclass(frozen=True)
class Cost:
    """Wall seconds of a cell group: until it has compiled, and alone on the machine."""

    compiling: float
    alone: float


UNKNOWN = Cost(150.0, 60.0)  # a cell like none before
START_SECONDS = 20.0  # of a process, before its own clock starts


def next_group(todo: Sequence[CellKey], known: Iterable[Cell], jobs: int, seconds_left: float | None) -> list[CellKey]:
    """The first cells of ``todo``, ``jobs`` at most, that will be done in time by what cells have cost before: they
    compile side by side, then each is timed alone."""
    measured = [cell for cell in known if cell.seconds]
    group: list[CellKey] = []
    compiling = alone = 0.0
    for cell in todo[:jobs]:
        cost = expected_cost(cell, measured)
        compiling, alone = max(compiling, cost.compiling), alone + cost.alone
        if seconds_left is not None and CAUTION * (compiling + alone) > seconds_left:
            break
        group.append(cell)
    return group


def expected_cost(cell: CellKey, measured: Iterable[Cell]) -> Cost:
    """That of the model's dearest cell, else of the dearest of all."""
    costs = [
        (other.key.model == cell.model, START_SECONDS + other.seconds["compile"], other.seconds["alone"])
        for other in measured
    ]
    alike = [cost for cost in costs if cost[0]] or costs
    return Cost(max(c[1] for c in alike), max(c[2] for c in alike)) if alike else UNKNOWN


def run_together(
    jobs: Sequence[Job], deadline: float | None, here: Mapping[str, str | int], tell: Callable[[str], None]
) -> None:
    """Let all compile side by side, then each measure alone. What fails is saved as a cell that says why; what is cut
    off at ``deadline`` (of time.monotonic) leaves no trace."""
    before = {job.cell: load_cell(job.folder, job.cell) for job in jobs}
    children = [Child(job, _left(deadline), job.cache.with_name(job.cache.name + ".log")) for job in jobs]
    try:
        for child in children:
            child.wait_until_ready()
        for child in children:
            failure = child.measure()
            key, folder = child.job.cell, child.job.folder
            made = load_cell(folder, key)
            if made is None or made == before[key]:  # a process that fails after it has saved has done its work
                if child.timed_out:
                    tell(f"{key}: not run, cut off by the time limit")
                    continue
                made = Cell(key, here, failed=failure or "left no result")
                save_cell(folder, made)
            tell(summary(made))
    finally:
        for child in children:
            child.close()


def summary(cell: Cell) -> str:
    """One line, in µs."""
    if cell.failed:
        return f"{cell.key}: failed, {cell.failed}"
    times = [f"{name} {result.median_us:.1f}" for name, result in cell.systems.items() if result.median_us]
    wrong = [name for name, result in cell.systems.items() if result.verified is False]
    seconds = f"{cell.seconds['compile']:.0f} + {cell.seconds['alone']:.0f} s"
    return f"{cell.key} ({seconds}): {', '.join(times)}" + (f"; WRONG: {', '.join(wrong)}" if wrong else "")


def _with_earlier(wanted: Sequence[str], earlier: Cell | None) -> tuple[str, ...]:
    """Systems that were tried before stay in the table: only what is measured side by side can be compared."""
    tried = {*wanted, *(earlier.systems if earlier else ())}
    return tuple(name for name in SYSTEMS if name in tried)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


def _split(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


if __name__ == "__main__":
    typer.run(main)
