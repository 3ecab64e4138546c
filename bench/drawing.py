"""What the report's plots have in common: bars side by side, the paper's values across them, colours, what is said of
the cells. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError:  # whoever imports this is a command, and has measured nothing yet
    raise SystemExit("not installed: matplotlib; run: pip install -e '.[bench]'") from None

from bench.cells import Cell
from bench.tables import NOT_RUN, title

COLOURS = {
    "sequential": "#9aa0a6",
    "wavefront": "#f3c26b",
    "nimble": "#e58f65",
    "opara": "#c2559d",
    "compiled": "#4f86c6",
    "ours": "#1b7f5c",
}
PAPER_COLOUR = "#555555"


def grouped(
    models: Collection[str],
    bars: Mapping[str, Sequence[float | None]],
    colours: Sequence[str],
    label: str,
    heading: str,
    paper: Mapping[str, Sequence[float]] | None = None,
    baseline: str = "",
) -> Figure | None:
    """Bars side by side per model, with the paper's values as short lines across them; None where there is no bar.
    ``baseline``: what was not run where a model has no bar."""
    if not any(value for values in bars.values() for value in values):
        return None
    figure, axes = new_axes(width=0.8 + (0.35 + 0.16 * len(bars)) * len(models))
    width = 0.85 / len(bars)
    bare = [x for x, values in enumerate(zip(*bars.values(), strict=True)) if not any(values)]
    for x in bare:
        _not_run(axes, x, baseline)
    for number, (name, values) in enumerate(bars.items()):
        places = [x + (number - (len(bars) - 1) / 2) * width for x in range(len(models))]
        known = {place: value for place, value in zip(places, values, strict=True) if value is not None}
        axes.bar(list(known), list(known.values()), width, color=colours[number], label=name)
        for x, place in enumerate(places):
            if place not in known and x not in bare:
                _not_run(axes, place)
        for place, value in zip(places, (paper or {}).get(name, ()), strict=False):
            axes.plot([place - width / 2, place + width / 2], [value] * 2, color=PAPER_COLOUR, linewidth=2)
    if paper:
        axes.plot([], [], color=PAPER_COLOUR, linewidth=2, label="the paper")
    axes.set_xticks(range(len(models)), [title(model) for model in models], rotation=20, ha="right")
    axes.set_ylabel(label)
    axes.set_title(heading, fontsize=9)
    axes.set_xlim(-0.6, len(models) - 0.4)
    axes.grid(axis="y", linewidth=0.4)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def _not_run(axes: Axes, place: float, what: str = "") -> None:
    """In the gap where a bar would stand, which could be taken for a bar of nothing."""
    axes.text(
        *(place, 0.02, f"{what} {NOT_RUN}".strip()),
        transform=axes.get_xaxis_transform(),
        rotation=90,
        ha="center",
        va="bottom",
        fontsize=6,
        color=PAPER_COLOUR,
    )


def told(cells: Iterable[Cell | None]) -> str:
    """dtype, batch size and GPU."""
    known = [cell for cell in cells if cell]
    sizes = sorted({f"{cell.key.dtype} ×{cell.key.batch}" for cell in known})
    return f"{' and '.join(sizes)}, {gpus(known)}"


def gpus(cells: Iterable[Cell]) -> str:
    return " and ".join(sorted({str(cell.environment.get("gpu", "no GPU")) for cell in cells}))


def style() -> AbstractContextManager[None]:
    return mpl.rc_context(
        {
            "svg.hashsalt": "opara",  # the same data give the same file
            "svg.fonttype": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "font.size": 9,
        }
    )


def new_axes(width: float) -> tuple[Figure, Axes]:
    """Of ``width`` inches by themselves: ``save`` adds what their labels take, however long the names are."""
    with style():
        figure = Figure(figsize=(width, 2.6))
        return figure, figure.add_axes((0.0, 0.0, 1.0, 1.0))


def stacked_axes(count: int) -> tuple[Figure, list[Axes]]:
    """One above the other, on one horizontal axis."""
    with style():
        figure = Figure(figsize=(8, 1.2 + 1.6 * count), layout="constrained")
        return figure, [axes for (axes,) in figure.subplots(count, 1, sharex=True, squeeze=False)]


def save(figure: Figure, path: Path) -> None:
    with style():
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.08)


def once(label: str, position: int) -> str:
    """A label for the legend, but not once more for every model."""
    return label if position == 0 else "_" + label
