"""From cells to Markdown: the suite's own tables. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from statistics import geometric_mean

from bench.cells import Cell, CellKey, SystemResult
from bench.selection import ALL_MODELS, BATCHES, DTYPES, PAPER_MODELS, REQUIRED_MODELS, REQUIRED_SIZES, TITLES

NOT_RUN = "not run"
OURS, SEQUENTIAL = "ours", "sequential"
CALLED = ("compile_reduce_overhead", "compile_max_autotune")
ONE_GRAPH = (
    "graph_default",
    "graph_freezing",
    "graph_combo_kernels",
    "graph_conv_1x1_as_mm",
    "graph_max_autotune",
)
COMPILED = (*CALLED, *ONE_GRAPH)
SHORT = {
    "eager": "eager",
    "sequential": "CUDA Graph",
    "aten": "operators in sequence",
    "wavefront": "wavefront",
    "nimble": "Nimble",
    "opara": "Opara",
    "compile_reduce_overhead": "compile: reduce-overhead",
    "compile_max_autotune": "compile: max-autotune",
    "graph_default": "one graph: default",
    "graph_freezing": "one graph: freezing",
    "graph_combo_kernels": "one graph: combo kernels",
    "graph_conv_1x1_as_mm": "one graph: 1×1 as products",
    "graph_max_autotune": "one graph: max-autotune",
    "ours": "opara-serve",
}

Cells = Mapping[CellKey, Cell]
Ratio = Callable[[Cell], float | None]


def over_sequential(cell: Cell) -> float | None:
    return cell.speedup(SEQUENTIAL, OURS)


def over_compiled(cell: Cell) -> float | None:
    """Over the fastest that torch.compile gave, in whatever mode and with whatever options."""
    return over_fastest(cell, COMPILED)


def over_one_graph(cell: Cell) -> float | None:
    """Over the fastest of torch.compile in one sequential CUDA Graph, with whatever options."""
    return over_fastest(cell, ONE_GRAPH)


def over_best_other(cell: Cell) -> float | None:
    return over_fastest(cell, others(cell))


def over_fastest(cell: Cell, systems: Iterable[str], system: str = OURS) -> float | None:
    rival = cell.rival(systems, system)
    return cell.speedup(rival, system) if rival else None


def compiled_over(cell: Cell, system: str) -> float | None:
    """How much faster the best of torch.compile is than ``system``."""
    gains = [gain for name in COMPILED if (gain := cell.speedup(system, name)) is not None]
    return max(gains, default=None)


def others(cell: Cell) -> list[str]:
    return [name for name in cell.systems if name != OURS]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def title(model: str) -> str:
    return TITLES.get(model, model)


def cell_name(key: CellKey) -> str:
    return f"{title(key.model)} {key.dtype} ×{key.batch}"


def number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


def required_keys() -> list[CellKey]:
    return [CellKey(model, dtype, batch) for (dtype, batch), model in product(REQUIRED_SIZES, REQUIRED_MODELS)]


def main_table(cells: Cells) -> str:
    """The required cells and whatever else was run, µs per run: of the host's clock where the header says so."""
    header = [
        *("model", "dtype", "batch", "eager, host", "CUDA Graph", "wavefront", "Nimble", "Opara"),
        *("reduce-overhead, host", "max-autotune, host", "torch.compile, one graph", "opara-serve", "over CUDA Graph"),
        *("over torch.compile", "over best other", "over longest path", "SM use", "occupancy"),
        *("peak MiB", "tuning s", "streams", "error", "error, CUDA Graph's"),
    ]
    more = [key for key in _full_matrix(cells) if key in cells and key not in set(required_keys())]
    return markdown(header, [_main_row(key, cells.get(key)) for key in [*required_keys(), *more]])


def _main_row(key: CellKey, cell: Cell | None) -> list[str]:
    start = [title(key.model), key.dtype, str(key.batch)]
    if cell is None or cell.failed:
        return [*start, NOT_RUN if cell is None else f"failed: {cell.failed}", *[""] * 19]
    times = [_time(cell, name) for name in ("eager", "sequential", "wavefront", "nimble", "opara", *CALLED)]
    times_in_graph = {name: time for name in ONE_GRAPH if (time := cell.time_us(name)) is not None}
    best = min(times_in_graph, key=lambda name: times_in_graph[name], default=None)
    in_graph = f"{times_in_graph[best]:.1f} ({SHORT[best].split(': ')[1]})" if best else "–"
    own = cell.systems.get(OURS)
    if own is None or own.failed is not None:
        return [*start, *times, in_graph, _time(cell, OURS), *[""] * 11]
    ratios = [number(ratio(cell), unit="×") for ratio in (over_sequential, over_compiled, over_best_other)]
    errors = [_error(own), _error(cell.systems.get(SEQUENTIAL))]
    return [*start, *times, in_graph, _time(cell, OURS), *ratios, *_own_columns(own), *errors]


def _own_columns(own: SystemResult) -> list[str]:
    path = own.median_us / own.longest_path_us if own.median_us and own.longest_path_us else None
    return [
        *(number(path, unit="×"), number(own.sm_utilisation, ".0%"), number(own.sm_occupancy, ".1%")),
        *(mebibytes(own.peak_bytes), number(own.tuning_seconds, ".0f"), number(own.streams, "d")),
    ]


def _error(result: SystemResult | None) -> str:
    if result is None or result.failed is not None:
        return "–"
    return number(result.error, ".0e") if result.verified else "WRONG"


def _time(cell: Cell, name: str) -> str:
    result = cell.systems.get(name)
    if result is None:
        return NOT_RUN
    if result.failed is not None:
        return "failed"
    return number(result.time_us, ".1f") + ("" if result.verified else " WRONG")


def mebibytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**20:.1f}"


def geometric_means(cells: Cells, models: Sequence[str] = PAPER_MODELS) -> str:
    """Of ``models``, by dtype and batch size, and over how many of them."""
    rows = []
    for dtype, batch in product(DTYPES, BATCHES):
        ran = [cell for model in models if (cell := cells.get(CellKey(model, dtype, batch))) and cell.right(OURS)]
        if ran or (dtype, batch) in REQUIRED_SIZES:
            means = [_mean(ran, ratio) for ratio in (over_sequential, over_compiled)]
            rows.append([dtype, str(batch), *(means if ran else [NOT_RUN] * 2), f"{len(ran)} of {len(models)}"])
    return markdown(["dtype", "batch", "over the sequential CUDA Graph", "over the best torch.compile", "models"], rows)


def _mean(cells: Iterable[Cell], ratio: Ratio) -> str:
    values = [value for cell in cells if (value := ratio(cell)) is not None]
    return number(geometric_mean(values), unit="×") if values else "–"


def parts_table(cells: Cells) -> str:
    """What each step brings, where all of them were measured: export, parallel streams, fusion, and both."""
    header = [
        *("model", "dtype", "batch", "CUDA Graph", "operators in sequence", "best schedule of them"),
        *("fused, one stream", "opara-serve", "fusion", "streams on top"),
    ]
    rows = []
    for key in _full_matrix(cells):
        cell = cells.get(key)
        own = cell.right(OURS) if cell else None
        if cell is None or own is None or not own.one_stream_us or not own.median_us:
            continue
        graphs = [cell.time_us(name) for name in (SEQUENTIAL, "aten")]
        rival = cell.rival(("wavefront", "nimble", "opara"), OURS)
        times = [*graphs, cell.time_us(rival) if rival else None, own.one_stream_us, own.median_us]
        fusion = graphs[1] / own.one_stream_us if graphs[1] else None
        gains = [number(gain, unit="×") for gain in (fusion, own.one_stream_us / own.median_us)]
        rows.append([title(key.model), key.dtype, str(key.batch), *(number(time, ".1f") for time in times), *gains])
    return markdown(header, rows) if rows else ""


def matrix(cells: Cells, dtype: str) -> str:
    """Speed-up over the sequential CUDA Graph / over the best torch.compile, of every cell there could be."""
    models = [*ALL_MODELS, *sorted({key.model for key in cells} - set(ALL_MODELS))]
    return markdown(
        ["model", *(f"×{batch}" for batch in BATCHES)],
        [[title(m), *(_both(cells.get(CellKey(m, dtype, batch))) for batch in BATCHES)] for m in models],
    )


def _both(cell: Cell | None) -> str:
    if cell is None:
        return NOT_RUN
    if cell.failed or not cell.right(OURS):
        return "failed"
    return f"{number(over_sequential(cell), unit='×')} / {number(over_compiled(cell), unit='×')}"


def worst_cell(cells: Cells) -> str:
    """One sentence: where the engine does worst against the best other system."""
    ratios = {key: ratio for key, cell in cells.items() if (ratio := over_best_other(cell)) is not None}
    if not ratios:
        return "No cell has both this engine and another system."
    worst = min(ratios, key=lambda key: ratios[key])
    other = cells[worst].rival(others(cells[worst]), OURS)
    slower = [key for key, ratio in ratios.items() if ratio < 0.97]
    count = f"{len(slower)} of {len(ratios)} cells are more than 3 % slower than the best other system"
    return f"{count}. The worst is {cell_name(worst)}: {ratios[worst]:.3f}× as fast as {SHORT[other or '']}."


def unverified(cells: Cells) -> list[str]:
    """Every system of every cell whose numbers are wrong."""
    return [
        f"{cell.key}, {SHORT[name]}: {result.detail}"
        for cell in cells.values()
        for name, result in cell.systems.items()
        if result.verified is False
    ]


def cell_table(cell: Cell) -> str:
    """Every column of every system of one cell."""
    header = [
        *("system", "µs", "± %", "host µs", "over CUDA Graph", "over torch.compile", "over longest path"),
        *("SM use", "occupancy", "peak MiB", "held MiB", "tuning s", "streams", "lowering", "policy", "error", ""),
    ]
    return markdown(header, [_system_row(cell, name, result) for name, result in cell.systems.items()])


def _system_row(cell: Cell, name: str, result: SystemResult) -> list[str]:
    if result.failed is not None:
        return [SHORT[name], *[""] * 15, result.failed]
    spread = None if result.spread is None else 100 * result.spread
    path = result.median_us / result.longest_path_us if result.median_us and result.longest_path_us else None
    return [
        *(SHORT[name], number(result.median_us, ".1f"), number(spread, ".1f"), number(result.host_us, ".1f")),
        *(number(cell.speedup(SEQUENTIAL, name)), number(over_fastest(cell, COMPILED, name)), number(path)),
        *(number(result.sm_utilisation, ".0%"), number(result.sm_occupancy, ".1%")),
        *(mebibytes(result.peak_bytes), mebibytes(result.held_bytes), number(result.tuning_seconds, ".1f")),
        *(number(result.streams, "d"), result.lowering or "", result.policy or ""),
        *(number(result.error, ".1e") if result.verified else "WRONG", result.detail),
    ]


def _full_matrix(cells: Cells) -> list[CellKey]:
    sizes = [(dtype, batch) for dtype, batch in product(DTYPES, BATCHES)]
    named = [CellKey(model, dtype, batch) for (dtype, batch), model in product(sizes, ALL_MODELS)]
    return [*named, *(key for key in sorted(cells) if key not in set(named))]
