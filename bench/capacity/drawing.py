"""The plots of the capacity model, as SVG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.capacity.studies import BURSTS, FRONT_LIMITED, LOADS
from bench.drawing import style

BALANCER_COLOURS = {
    "least-loaded": "#1b7f5c",
    "two-choices": "#4f86c6",
    "round-robin": "#e58f65",
    "random": "#9aa0a6",
}
P50, P99, WAIT = "#4f86c6", "#c2559d", "#1b7f5c"
TICKS = (10, 20, 50, 100, 200, 500, 1000)


def draw(results: dict[str, Any], folder: Path) -> None:
    figures = {
        "capacity_measured": measured(results["measured"]),
        "capacity_fleet": fleet(results["studies"]["fleet"]),
        "capacity_scaling": scaling(results["studies"]["load"]),
    }
    for name, figure in figures.items():
        with style():
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def measured(runs: dict[str, Any]) -> Figure:
    """Predicted, as lines with what chance makes of a window as long as the measured one; measured, as dots."""
    figure, panels = _panels(1, len(runs), (13, 3.4))
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        shares = [point["share"] for point in run["points"]]
        for what, colour in (("p50", P50), ("p99", P99)):
            said = [point[f"{what}_ms"] for point in run["predicted"]]
            chance = [2 * point[f"{what}_chance_ms"] for point in run["predicted"]]
            axes.plot(shares, said, color=colour, label=f"{what}, predicted")
            lower = [value - width for value, width in zip(said, chance, strict=True)]
            upper = [value + width for value, width in zip(said, chance, strict=True)]
            axes.fill_between(shares, lower, upper, color=colour, alpha=0.2, linewidth=0)
            found = [point[f"{what}_ms"] for point in run["points"]]
            axes.plot(shares, found, "o", color=colour, label=f"{what}, measured")
        count = run["settings"]["servers"]
        axes.set_title(f"{count} {'server' if count == 1 else 'servers'}, {name.split()[0]}", fontsize=9)
        axes.set_xlabel("share of capacity")
        _milliseconds(axes)
    panels[0].set_ylabel("latency, ms")
    panels[0].legend(frameon=False, fontsize=7)
    return figure


def fleet(points: Sequence[dict[str, Any]]) -> Figure:
    """p99 by number of replicas, a line for each balancer."""
    figure, panels = _panels(len(BURSTS), len(LOADS), (9, 6.4))
    kinds = [(burst, share) for burst in BURSTS for share in LOADS]
    for axes, (burst, share) in zip(panels, kinds, strict=True):
        for balancer, colour in BALANCER_COLOURS.items():
            line = [p for p in points if (p["burst"], p["share"], p["balancer"]) == (burst, share, balancer)]
            sizes = [point["replicas"] for point in line]
            axes.plot(sizes, [point["p99_ms"] for point in line], ".-", color=colour, label=balancer)
        arrivals = "Poisson" if burst == 1 else f"in bursts of {burst}"
        axes.set_title(f"{share:.0%} of capacity, {arrivals}", fontsize=9)
        axes.set_xscale("log")
        axes.set_xlabel("replicas")
        axes.set_ylabel("p99, ms")
        _milliseconds(axes)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def scaling(curves: dict[str, Sequence[dict[str, Any]]]) -> Figure:
    """p99 and what pods are scaled by, against load: where the device is the limit, and where the front is."""
    figure, panels = _panels(1, len(curves), (9, 3.4), sharey=False)
    limits = {"measured": "the device is the limit", FRONT_LIMITED: f"{FRONT_LIMITED}: the front is the limit"}
    for axes, (name, points) in zip(panels, curves.items(), strict=True):
        shares = [point["share"] for point in points]
        axes.plot(shares, [point["p99_ms"] for point in points], ".-", color=P99, label="p99")
        axes.plot(shares, [point["queue_ms"] for point in points], ".-", color=WAIT, label="mean wait in the queue")
        axes.set_title(limits[name], fontsize=9)
        axes.set_xlabel("share of capacity")
        axes.set_ylabel("ms")
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=8)
    return figure


def _panels(rows: int, columns: int, size: tuple[float, float], *, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    with style():
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, sharey=sharey, squeeze=False)
    return figure, [axes for row in grid for axes in row]


def _milliseconds(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.3)
