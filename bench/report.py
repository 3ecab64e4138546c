"""Tables and plots of all cells that were measured: ``engine.md``, ``engine_cells.md``, SVG files and README's table.
No torch.

python -m bench.report
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench import figures, notes, readme, tables
from bench.candidates import candidate_tables, chosen
from bench.cells import Cell, load_cells
from bench.goals import goals_table
from bench.plots import draw_all
from bench.provenance import coverage, digest, machine, settings, sources
from bench.selection import DTYPES, REQUIRED_MODELS
from bench.tables import Cells

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"

HOW = """\
Every system of a cell ran in one process, with the same layouts (channels_last for convolutional networks),
`cudnn.benchmark` and inference mode; *float32* has TF32 allowed. Graphs are timed in turns; their µs are medians of
CUDA event times of one run that follows another. What the host drives (eager PyTorch and torch.compile's own modes) is
timed apart, before the graphs, and its µs are the *host*'s: medians of wall time from the call to the end of the run,
as a user sees it, for how much of its launching the GPU hides depends on what was queued before. Every ratio to one of
these is of host times on both sides, the ratios between graphs are of device times. Weights are random, batch norms
have the statistics of random images, so that outputs depend on inputs.

*One graph*: torch.compile captured in one sequential CUDA Graph; of its options, which were not combined but for
freezing, the fastest that was run. Two that this engine sets for its own operators, `triton.enable_pdl` and a greater
`max_pointwise_cat_inputs`, are not among them. *over torch.compile*: over the fastest that torch.compile gave in any
way that was run. *over longest path*: over the sum of the kernels on the longest path of the system's own operators. SM
use and occupancy: GPM counters during back-to-back runs. *tuning s*: wall time until the system was ready, without
waiting for its turn; systems share Inductor's cache, and many cells compile at once.

*not run*: nobody measured that cell or system; of such a cell all other columns are empty. *–*: not to be had, as a
ratio to a system that was not run. *failed*: tried, and without a result.

*error*: |out − ref| / |ref| against the same module in float64, the largest of all outputs over fresh inputs. An
output is right if its error is at most the bound of its dtype (5e-03 for float16, 2e-03 for float32 with TF32) or
three times eager PyTorch's own error on the same inputs, and if repeated runs repeat it to within the bound. Deep
networks with random weights lose digits in eager PyTorch as well: beside ours is the error of the CUDA Graph, which has
eager PyTorch's kernels."""

PARTS = """\
*Operators in sequence*: the exported ATen operators, which leave out what a module computes for nothing, in one stream;
*best schedule of them*: the fastest of wavefront, Nimble and Opara. *Fused, one stream*: the sequential graph of the
lowering that serves, as the search measured it, in turns with its other candidates."""

GOALS = """\
Speed-ups that are asked of the engine on an H100 or H200, over the sequential CUDA Graph of the eager module and over
the fastest of torch.compile in one sequential graph: a *floor* must be held, a *goal* is aimed at. The last column says
which was reached (*MISSED*: not even the floor), or how many cells were run where some are lacking."""


def main(
    cells: Annotated[Path, typer.Option(help="Folder of the cells.")] = RESULTS / "engine",
    out: Annotated[Path, typer.Option(help="Folder of tables and plots.")] = RESULTS,
) -> None:
    """Write tables and plots of what was measured."""
    write_report(cells, out)
    write_readme(cells, out)


def write_readme(cells_folder: Path, out: Path) -> None:
    """Where ``out`` is the repository's own."""
    if out.resolve() == RESULTS.resolve():
        README.write_text(readme.updated(README.read_text(), load_cells(cells_folder)))


def write_report(cells_folder: Path, out: Path) -> None:
    """Raises ValueError on a file among the cells that is none."""
    cells = load_cells(cells_folder)
    allocations = figures.load_allocations(RESULTS / "allocation_time.json")
    plots = draw_all(cells, allocations, out)
    (out / "engine.md").write_text(report(cells, allocations, plots))
    (out / "engine_cells.md").write_text(details(cells))


def report(cells: Cells, allocations: Mapping[str, figures.Allocation], plots: Sequence[str]) -> str:
    """The whole of ``engine.md``."""
    parts = [
        "# The benchmark suite",
        machine(cell.environment for cell in cells.values()),
        coverage(cells),
        sources(cells),
        settings(cells),
        HOW,
        notes.older(cells),
        notes.references(cells),
        _image("speedup", plots),
        "## All systems",
        tables.main_table(cells),
        "All columns of every system: [engine_cells.md](engine_cells.md).",
        tables.worst_cell(cells),
        chosen(cells),
        notes.drift(cells),
        _wrong(cells),
        notes.errors(cells),
        notes.below_the_path(cells),
        *_parts(cells),
        *candidate_tables(cells),
        "## Floors and goals",
        GOALS,
        goals_table(cells),
        notes.masks(cells),
        notes.memory(cells),
        "## Geometric means",
        "Of the paper's six models:",
        tables.geometric_means(cells),
        f"Of the {len(REQUIRED_MODELS)} required models:",
        tables.geometric_means(cells, REQUIRED_MODELS),
        notes.outlier(cells),
        "## Every cell",
        "opara-serve over the sequential CUDA Graph / over the best torch.compile, by batch size.",
    ]
    for dtype in DTYPES:
        parts += [f"{dtype}:", tables.matrix(cells, dtype)]
    parts += [
        "## The paper's figures",
        "Its values are of an RTX 2080 SUPER and an A100 with PyTorch 2.0; *ours / the paper's* where two stand "
        "together. ONNX Runtime was not run here.",
        "### Fig. 2: what the launch order alone is worth",
        "Algorithm 1's streams on ATen operators, launched in fourteen orders.",
        figures.figure_2(cells),
        _image("fig2_launch_order", plots),
        "### Fig. 5(a): speed-up over eager PyTorch, batch 1",
        "Of host times on both sides; *Opara over CUDA Graph* is of device times.",
        figures.figure_5a(cells),
        notes.masks_in_figure_5(cells),
        _image("fig5a_speedup_over_eager", plots),
        "### Fig. 5(b): how busy the GPU is, and memory, batch 1",
        "Ours: GPM counters; weights and what a system holds beside them.",
        figures.figure_5b(cells),
        _image("fig5b_sm_utilisation", plots),
        _image("fig5b_memory", plots),
        "### Fig. 8 and 9: Inception-v3 by batch size, over the sequential CUDA Graph",
        figures.figures_8_and_9(cells),
        _image("fig8_fig9_batch", plots),
        "### Table 1: stream allocation",
        "Ours is of the processor named in [allocation_time.md](allocation_time.md). Our profiling is several passes, "
        "reading the trace included; the paper's is one pass.",
        figures.table_1(cells, allocations),
        _image("table1_allocation", plots),
        figures.streams(cells),
        *(_image(name.removesuffix(".svg"), plots) for name in plots if name.startswith("timeline")),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def details(cells: Cells) -> str:
    """The whole of ``engine_cells.md``."""
    parts = [
        "# Every system of every cell",
        machine(cell.environment for cell in cells.values()),
        "How it was measured, and what the columns mean: [engine.md](engine.md). A row without figures: its system was "
        "not to be had here, and the last column says why.",
    ]
    for key in sorted(cells):
        cell = cells[key]
        cost = "" if cell.failed else f"Inductor's cache was {cell.cache}. {_cost(cell)}"
        body = f"failed: {cell.failed}" if cell.failed else tables.cell_table(cell)
        date = cell.environment.get("date", "unknown")
        parts += [f"## {tables.cell_name(key)} ({date}, engine sources {digest(cell.environment)})", cost, body]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cost(cell: Cell) -> str:
    return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in cell.seconds.items()) + "."


def _wrong(cells: Cells) -> str:
    wrong = tables.unverified(cells)
    if wrong:
        return "Wrong numbers, and out of all comparisons: " + "; ".join(wrong) + "."
    return "Every output was right, by the rule above." if cells else ""


def _parts(cells: Cells) -> list[str]:
    table = tables.parts_table(cells)
    return ["## What fusion brings, and what streams do", PARTS, table] if table else []


def _image(name: str, plots: Sequence[str]) -> str:
    return f"![{name.replace('_', ' ')}]({name}.svg)" if f"{name}.svg" in plots else ""


if __name__ == "__main__":
    typer.run(main)
