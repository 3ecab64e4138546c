"""A dashboard as a picture: its panels where Grafana would put them, with what Prometheus answers. It is no Grafana."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.observing.panels import Asked, load, queries_of
from bench.observing.prometheus import Monitoring, Series

GRID_WIDTH = 24
CELL_IN = (0.68, 0.36)  # of the grid: inches
MARGINS = (0.9, 0.95, 0.25, 0.45)  # left, bottom, right, top of a panel, in cells
MOST_SERIES = 8  # in a legend
STEP_S = 1.0
_SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "bytes": ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1.0, "B")),
}
_SUFFIXES = {"reqps": " req/s", "ops": "/s", "watt": " W", "none": ""}


@dataclass(frozen=True)
class Window:
    """Seconds since the epoch; ``rate_interval``: of rates, as Prometheus writes it."""

    begin: float
    end: float
    rate_interval: str


def draw(name: str, seen: Monitoring, window: Window, file: Path) -> None:
    """The dashboard ``name``, as PNG."""
    panels = load(name)["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = Figure(figsize=(GRID_WIDTH * CELL_IN[0], rows * CELL_IN[1]), dpi=80)
    for panel in panels:
        axes = _axes(figure, panel["gridPos"], rows)
        if panel["type"] == "row":
            axes.axis("off")
            axes.text(0, 0.5, panel["title"], fontsize=11, weight="bold", va="center")
            continue
        axes.set_title(panel["title"], fontsize=9, loc="left")
        found = [(query, _answers(seen, query, window)) for query in queries_of(name, panel)]
        _PAINTERS[panel["type"]](axes, panel["fieldConfig"]["defaults"]["unit"], found, window)
    figure.savefig(file)


Found = Sequence[tuple[Asked, list[Series]]]


def _answers(seen: Monitoring, query: Asked, window: Window) -> list[Series]:
    expr = query.filled(window.rate_interval)
    found = seen.query(expr) if query.instant else seen.query_range(expr, window.begin, window.end, STEP_S)
    finite = (Series(one.labels, tuple(p for p in one.points if isfinite(p[1]))) for one in found)
    return [one for one in finite if one.points]


def _axes(figure: Figure, place: Mapping[str, int], rows: int) -> Axes:
    left, bottom, right, top = MARGINS if place["h"] > 4 else (0.2, 0.1, 0.2, 0.7 if place["h"] > 1 else 0.0)
    x, y = place["x"] + left, rows - place["y"] - place["h"] + bottom
    width, height = place["w"] - left - right, place["h"] - bottom - top
    return figure.add_axes((x / GRID_WIDTH, y / rows, width / GRID_WIDTH, height / rows))


def _lines(axes: Axes, unit: str, found: Found, window: Window) -> None:
    for query, answers in found:
        for series in answers:
            times, values = zip(*((time - window.begin, value) for time, value in series.points), strict=True)
            axes.plot(times, values, linewidth=1.2, label=_legend(query.legend, series.labels))
    if not axes.lines:
        return _nothing(axes)
    axes.set_xlim(0, window.end - window.begin)
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _text(value, unit)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
    return _legends(axes)


def _legends(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[:MOST_SERIES], labels[:MOST_SERIES], fontsize=6, framealpha=0.6, loc="upper left")


def _bars(axes: Axes, unit: str, found: Found, _window: Window) -> None:
    bars = [(_legend(query.legend, s.labels), s.points[-1][1]) for query, answers in found for s in answers]
    if not bars:
        return _nothing(axes)
    names, values = zip(*sorted(bars, reverse=True), strict=True)
    axes.axis("off")
    axes.barh(range(len(bars)), values, color="tab:blue", alpha=0.35)
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        axes.text(0, number, f" {name}: {_text(value, unit)}", fontsize=7, va="center")
    return None


def _figure(axes: Axes, unit: str, found: Found, _window: Window) -> None:
    axes.axis("off")
    values = [series.points[-1][1] for _, answers in found for series in answers]
    text = _text(values[0], unit) if values else "none"
    axes.text(0.5, 0.5, text, fontsize=18, ha="center", va="center", color="tab:blue")


def _nothing(axes: Axes) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, "no data", fontsize=9, ha="center", va="center", color="gray")


def _legend(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template)


def _text(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit in _SCALES:
        scales = _SCALES[unit]
        scale, name = next((pair for pair in scales if abs(value) >= pair[0]), scales[-1])
        return f"{value / scale:.3g} {name}" if value else "0"
    number = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return number + _SUFFIXES.get(unit, unit.removeprefix("suffix:"))


_PAINTERS: Mapping[str, Any] = {"timeseries": _lines, "bargauge": _bars, "stat": _figure}
