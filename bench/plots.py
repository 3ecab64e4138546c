"""The plots of the report, as SVG files. No torch, and nothing drawn for what was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cells import Cell, CellKey
from bench.drawing import COLOURS, PAPER_COLOUR, gpus, grouped, new_axes, once, save, stacked_axes, told
from bench.figures import Allocation, batch_series, memory_mib, order_studies, paper_cell, sm_utilisation
from bench.paper import FIGURE_2, FIGURE_5, FIGURE_8, FIGURE_9, TABLE_1
from bench.selection import ALL_MODELS, BATCHES, REQUIRED_MODELS
from bench.tables import OURS, SEQUENTIAL, SHORT, Cells, cell_name, compiled_over, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMELINES = (CellKey("googlenet", "float16", 1), CellKey("nasnet_a_large", "float16", 1))


def draw_all(cells: Cells, allocations: Mapping[str, Allocation], folder: Path) -> list[str]:
    """The names of the files written."""
    drawn = {
        "speedup": speedup(cells),
        "fig2_launch_order": launch_order(cells),
        "fig5a_speedup_over_eager": over_eager(cells),
        "fig5b_sm_utilisation": utilisation(cells),
        "fig5b_memory": memory(cells),
        "fig8_fig9_batch": by_batch(cells),
        "table1_allocation": allocation(allocations),
        **{f"timeline_{key.model}": timeline(cells.get(key)) for key in TIMELINES},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        (folder / f"{name}.svg").unlink(missing_ok=True)  # no plot of an earlier run beside tables of this one
        if figure:
            save(figure, folder / f"{name}.svg")
    return [f"{name}.svg" for name, figure in drawn.items() if figure]


def speedup(cells: Cells) -> Figure | None:
    """Over the sequential CUDA Graph, float16 ×1: the paper's method, the best of torch.compile, this engine."""
    found = {model: cells.get(CellKey(model, "float16", 1)) for model in ALL_MODELS}
    shown = {model: cell for model, cell in found.items() if cell or model in REQUIRED_MODELS}
    bars = {
        "Opara as published": _speedups(shown.values(), SEQUENTIAL, "opara"),
        "best torch.compile": _compiled(shown.values(), SEQUENTIAL),
        "opara-serve": _speedups(shown.values(), SEQUENTIAL, OURS),
    }
    colours = [COLOURS["opara"], COLOURS["compiled"], COLOURS["ours"]]
    named = told(found.values())
    label = "speed-up over the sequential CUDA Graph"
    return grouped(shown, bars, colours, label, f"Speed-up, {named}", baseline=SHORT[SEQUENTIAL])


def launch_order(cells: Cells) -> Figure | None:
    """Fig. 2: one dot per launch order, the time over the fastest's; the most that the paper saw, as lines."""
    studies = order_studies(cells)
    if not studies:
        return None
    figure, axes = new_axes(width=1.0 + 1.1 * len(studies))
    for x, study in enumerate(studies):
        least = min(study.times.values())
        others = [time / least for name, time in study.times.items() if name != "Algorithm 2"]
        grey, label = COLOURS["sequential"], once("other orders", x)
        axes.plot([x] * len(others), others, "o", color=grey, alpha=0.7, label=label)
        own, label = study.times["Algorithm 2"] / least, once("Algorithm 2", x)
        axes.plot([x], [own], "D", color=COLOURS["opara"], label=label)
    for (gpu, worth), dashes in zip(FIGURE_2.items(), ("--", ":"), strict=True):
        axes.axhline(1 + worth, linestyle=dashes, color=PAPER_COLOUR, label=f"the paper, at most, {gpu}")
    axes.set_xticks(range(len(studies)), [title(study.key.model) for study in studies], rotation=20, ha="right")
    axes.set_ylabel("time over the fastest order's")
    axes.set_title(f"Launch orders, {told(cells[study.key] for study in studies)}", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def over_eager(cells: Cells) -> Figure | None:
    """Fig. 5(a), with the paper's values as lines across the bars."""
    shown = {model: paper_cell(cells, model) for model in FIGURE_5}
    systems = ("sequential", "wavefront", "nimble", "opara")
    bars = {SHORT[name]: _speedups(shown.values(), "eager", name) for name in systems}
    bars["best torch.compile"] = _compiled(shown.values(), "eager")
    bars[SHORT[OURS]] = _speedups(shown.values(), "eager", OURS)
    paper = {
        SHORT["sequential"]: [figure.cuda_graph for figure in FIGURE_5.values()],
        SHORT["wavefront"]: [figure.wavefront for figure in FIGURE_5.values()],
        SHORT["nimble"]: [figure.nimble for figure in FIGURE_5.values()],
        SHORT["opara"]: [figure.opara for figure in FIGURE_5.values()],
    }
    named = f"Fig. 5(a), {told(shown.values())}"
    return grouped(shown, bars, list(COLOURS.values()), "speed-up over eager PyTorch", named, paper, "eager")


def utilisation(cells: Cells) -> Figure | None:
    """Fig. 5(b), the upper half."""
    shown = {model: paper_cell(cells, model) for model in FIGURE_5}
    systems = ("sequential", "opara", OURS)
    bars = {SHORT[n]: [_percent(sm_utilisation(cell, n)) for cell in shown.values()] for n in systems}
    paper = {
        SHORT["sequential"]: [figure.sm_efficiency[0] for figure in FIGURE_5.values()],
        SHORT["opara"]: [figure.sm_efficiency[1] for figure in FIGURE_5.values()],
    }
    named = f"Fig. 5(b), {told(shown.values())}"
    return grouped(shown, bars, [COLOURS[n] for n in systems], "SM utilisation, %", named, paper)


def memory(cells: Cells) -> Figure | None:
    """Fig. 5(b), the lower half: weights and what a system holds beside them."""
    shown = {model: paper_cell(cells, model) for model in FIGURE_5}
    systems = ("sequential", "opara", OURS)
    bars = {SHORT[n]: [memory_mib(cell, n) for cell in shown.values()] for n in systems}
    paper = {
        SHORT["sequential"]: [figure.peak_mb[0] for figure in FIGURE_5.values()],
        SHORT["opara"]: [figure.peak_mb[1] for figure in FIGURE_5.values()],
    }
    named = f"Fig. 5(b), {told(shown.values())}"
    return grouped(shown, bars, [COLOURS[n] for n in systems], "memory, MiB (the paper: MB)", named, paper)


def by_batch(cells: Cells) -> Figure | None:
    """Fig. 8 and 9: Inception-v3 by batch size."""
    lines = {
        f"{SHORT[system]}, {dtype}": (batch_series(cells, dtype, system), COLOURS[system], dashes)
        for dtype, dashes in (("float16", "-"), ("float32", ":"))
        for system in ("opara", OURS)
    }
    if not any(points for points, _, _ in lines.values()):
        return None
    figure, axes = new_axes(width=4.8)
    for label, (points, colour, dashes) in lines.items():
        if points:
            axes.plot(list(points), list(points.values()), dashes, marker="o", color=colour, label=label)
    for label, points, marker in (("Fig. 8: Opara, 2080 SUPER", FIGURE_8, "^"), ("Fig. 9: Opara, A100", FIGURE_9, "s")):
        axes.plot(list(points), list(points.values()), "--", marker=marker, color=PAPER_COLOUR, alpha=0.7, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    axes.axhline(1, color="black", linewidth=0.8)
    measured_on = gpus(cell for key, cell in cells.items() if key.model == "inception_v3")
    axes.set_title(f"Inception-v3, ours on {measured_on}", fontsize=9)
    axes.set_xlabel("batch size; sizes without a mark were not run")
    axes.set_ylabel("speed-up over the sequential CUDA Graph")
    axes.legend(frameon=False)
    return figure


def allocation(allocations: Mapping[str, Allocation]) -> Figure | None:
    """Table 1, with the paper's values as lines across the bars."""
    ran = [model for model in TABLE_1 if model in allocations]
    bars: dict[str, list[float | None]] = {
        "Algorithm 1": [allocations[model].opara_ms for model in ran],
        "Nimble": [allocations[model].nimble_ms for model in ran],
    }
    paper = {
        "Algorithm 1": [TABLE_1[model].opara_ms for model in ran],
        "Nimble": [TABLE_1[model].nimble_ms for model in ran],
    }
    colours = [COLOURS["opara"], COLOURS["nimble"]]
    figure = grouped(ran, bars, colours, "time to allocate streams, ms", "Table 1, on one processor", paper)
    if figure:
        figure.axes[0].set_yscale("log")
    return figure


def timeline(cell: Cell | None) -> Figure | None:
    """Which stream was busy when in one replay: the paper's method above, this engine below, on one time axis."""
    traced: Mapping[str, Any] = cell.studies.get("timelines", {}) if cell else {}
    names = [name for name in ("opara", OURS) if name in traced]
    if not cell or not names:
        return None
    figure, rows = stacked_axes(len(names))
    for axes, name in zip(rows, names, strict=True):
        intervals = traced[name]["intervals"]
        for stream in sorted({interval[0] for interval in intervals}):
            spans = [(start, end - start) for number, start, end in intervals if number == stream]
            axes.broken_barh(spans, (stream - 0.4, 0.8), facecolors=COLOURS[name], rasterized=True)
        axes.set_ylabel("stream")
        concurrency = traced[name]["concurrency"]
        axes.set_title(f"{SHORT[name]}: {concurrency:.2f} streams busy on average", loc="left", fontsize=9)
    rows[-1].set_xlabel(f"µs, one replay of {cell_name(cell.key)}, {gpus([cell])}")
    return figure


def _speedups(cells: Iterable[Cell | None], over: str, system: str) -> list[float | None]:
    return [cell.speedup(over, system) if cell else None for cell in cells]


def _compiled(cells: Iterable[Cell | None], over: str) -> list[float | None]:
    return [compiled_over(cell, over) if cell else None for cell in cells]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
