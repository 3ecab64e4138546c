"""The benchmark suite: every system on every model, side by side.

    python -m bench.engine --time-limit-s 540

Each cell group (a model at one dtype and batch size) is measured in a process of its own, by ``bench.cell``, on one
GPU, and saved as one JSON file. Each GPU has its share of the cells and of the processors: on these many cells compile
side by side; then one after the other is measured. What is there already, from the same machine, versions, sources of
the engine and settings, is not measured again: a run can be cut off and gone on with, and with ``--any-engine`` after a
change to the engine as well. Afterwards ``bench.report`` makes tables and plots of all that is there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from bench.cells import Cell, CellKey, is_current, load_cell, load_cells
from bench.child import Job
from bench.environment import environment
from bench.goals import goals_table, ratios_table
from bench.gpus import Lane, cells_at_once, lanes_for
from bench.models import require_packages
from bench.planning import next_group, share_out
from bench.report import write_readme, write_report
from bench.running import Crew, run_group
from bench.selection import TUNING_BUDGET_S, choose_cells, systems_for
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
    jobs: Annotated[int, typer.Option(min=0, help="Cells per GPU that compile at once. 0: as there is room for.")] = 0,
    seconds: Annotated[float, typer.Option(help="Of timing, per system and cell.")] = 0.3,
    counter_seconds: Annotated[float, typer.Option(help="Of reading the SM counters, per system and cell.")] = 0.15,
    tuning_budget_s: Annotated[float, typer.Option(help="Of this engine, per cell.")] = TUNING_BUDGET_S,
    studies: Annotated[bool, typer.Option("--studies", help="In every cell, not in float16 ×1 alone.")] = False,
    any_engine: Annotated[bool, typer.Option("--any-engine", help="Keep what other engine sources measured.")] = False,
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
        lanes = lanes_for(device, gpus)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    here = environment() | {"device": device}
    settings = {"seconds": seconds, "tuning_budget_s": tuning_budget_s}

    def current(cell: CellKey) -> bool:
        return is_current(load_cell(output, cell), here, settings, wanted[cell], any_engine=any_engine)

    todo = [cell for cell in cells if force or not current(cell)]
    require_packages(cell.model for cell in todo)
    console.print(f"{len(cells)} cells, {len(cells) - len(todo)} of them there already")

    def job(cell: CellKey, lane: Lane, together: int, compile_until: float | None) -> Job:
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
            threads=max(1, len(lane.processors) // together),
            gpu=lane.gpu,
            compile_until=compile_until,
            processors=lane.processors,
        )

    def work(lane: Lane, share: list[CellKey]) -> None:
        at_once = jobs or cells_at_once(device, len(lane.processors))
        while share:
            group = next_group(share, load_cells(output).values(), at_once, _left(deadline))
            if not group.cells:
                break
            until = deadline - group.cost.alone if deadline else None
            started = [job(cell, lane, len(group.cells), until) for cell in group.cells]
            run_group(crew, started, deadline, here, console.print)
            share = share[len(group.cells) :]
        for cell in share:
            console.print(f"{cell}: not run, no time left")

    shares = share_out(todo, load_cells(output).values(), len(lanes))
    with ThreadPoolExecutor(len(lanes)) as pool, Crew() as crew:  # an interruption ends the crew, then the lanes end
        list(pool.map(work, lanes, shares))
    known = load_cells(output)
    console.print(f"\n{ratios_table({cell: known[cell] for cell in cells if cell in known})}\n\n{goals_table(known)}\n")
    write_report(output, reports)
    write_readme(output, reports)
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
