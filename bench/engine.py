"""The benchmark suite: every system on every model, side by side.

    python -m bench.engine --time-limit-s 540

Each cell group (a model at one dtype and batch size) is measured in a process of its own, by ``bench.cell``, on one
GPU, and saved as one JSON file. Many compile side by side; then each GPU measures one after the other. What is there
already, from the same machine and versions, is not measured again: a run can be cut off and gone on with. Afterwards
``bench.report`` makes tables and plots of all that is there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from bench.cells import Cell, CellKey, is_current, load_cell, load_cells
from bench.child import Job
from bench.environment import environment
from bench.goals import goals_table, ratios_table
from bench.gpus import cells_at_once, gpus_for, processors
from bench.planning import next_group
from bench.report import write_report
from bench.running import run_group
from bench.selection import choose_cells, systems_for
from bench.systems import SYSTEMS

RESULTS = Path(__file__).parent / "results"


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
    gpus: Annotated[int, typer.Option(min=0, help="How many measure. 0: all of the first one's kind.")] = 0,
    jobs: Annotated[int, typer.Option(min=0, help="Cells that compile at once. 0: what the machine has room for.")] = 0,
    seconds: Annotated[float, typer.Option(help="Of timing, per system and cell.")] = 0.3,
    counter_seconds: Annotated[float, typer.Option(help="Of reading the SM counters, per system and cell.")] = 0.15,
    tuning_budget_s: Annotated[float, typer.Option(help="Of this engine, per cell.")] = 60.0,
    studies: Annotated[bool, typer.Option("--studies", help="In every cell, not in float16 ×1 alone.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Measure what is there already, too.")] = False,
) -> None:
    """Measure, then write tables and plots."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    deadline = time.time() + time_limit_s if time_limit_s else None
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("PyTorch sees no GPU here; --device cpu measures what needs none")
    try:
        cells = choose_cells(only or (), _split(models), _split(dtypes), [int(size) for size in _split(batches)])
        wanted = {cell: systems_for(cell, _split(systems), SYSTEMS) for cell in cells}
        measuring = gpus_for(device, gpus)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    here = environment() | {"device": device}
    todo = [cell for cell in cells if force or not is_current(load_cell(output, cell), here, wanted[cell])]
    console.print(f"{len(cells)} cells, {len(cells) - len(todo)} of them there already")

    def job(cell: CellKey, gpu: str, together: int, compile_until: float | None) -> Job:
        return Job(
            cell=cell,
            systems=_with_earlier(wanted[cell], load_cell(output, cell)),
            device=device,
            folder=output,
            cache=cache.absolute() / cell.stem,
            seconds=seconds,
            counter_seconds=counter_seconds,
            tuning_budget_s=tuning_budget_s,
            studies=studies or (cell.dtype, cell.batch) == ("float16", 1),
            threads=max(1, processors() // together),
            gpu=gpu,
            compile_until=compile_until,
        )

    at_once = jobs or cells_at_once(device, len(measuring))
    while todo:
        group = next_group(todo, load_cells(output).values(), at_once, len(measuring), _left(deadline))
        if not group:
            break
        until = deadline - group.cost.alone if deadline else None
        jobs_by_gpu = [
            [job(cell, gpu, len(group), until) for cell in share]
            for gpu, share in zip(measuring, group.shares, strict=True)
        ]
        run_group(jobs_by_gpu, deadline, here, console.print)
        todo = todo[len(group) :]
    for cell in todo:
        console.print(f"{cell}: not run, no time left")
    known = load_cells(output)
    console.print(f"\n{ratios_table({cell: known[cell] for cell in cells if cell in known})}\n\n{goals_table(known)}\n")
    write_report(output, reports)
    console.print(f"tables and plots are in {reports}")


def _with_earlier(wanted: Sequence[str], earlier: Cell | None) -> tuple[str, ...]:
    """Systems that were tried before stay in the table: only what is measured side by side can be compared."""
    tried = {*wanted, *(earlier.systems if earlier else ())}
    return tuple(name for name in SYSTEMS if name in tried)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.time()


def _split(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


if __name__ == "__main__":
    typer.run(main)
