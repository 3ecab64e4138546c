"""What README tells of results, made from the cells that were measured: a table, and what has to be known of it. No
torch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from statistics import geometric_mean

from bench import notes
from bench.cells import Cell, CellKey
from bench.figures import memory_mib
from bench.provenance import coverage
from bench.selection import REQUIRED_MODELS
from bench.tables import (
    COMPILED,
    OURS,
    SEQUENTIAL,
    Cells,
    cell_name,
    markdown,
    number,
    over_compiled,
    over_one_graph,
    over_sequential,
    title,
    worst_cell,
)

BEGIN, END = "<!-- table:begin, by bench.report -->", "<!-- table:end -->"
FACTS_BEGIN, FACTS_END = "<!-- facts:begin, by bench.report -->", "<!-- facts:end -->"
BATCHES = (1, 32)


def updated(text: str, cells: Cells) -> str:
    """``text``, a README, with the table and the facts of these cells between their marks. Raises ValueError where it
    has no marks."""
    return _between(_between(text, BEGIN, END, table(cells)), FACTS_BEGIN, FACTS_END, facts(cells))


def _between(text: str, begin: str, end: str, new: str) -> str:
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"no {begin} and {end}")
    return f"{before}{begin}\n{new}\n{end}{after}"


def facts(cells: Cells) -> str:
    """Paragraphs: memory, what flatters, means, and what was run."""
    parts = [_memories(cells), _baselines(cells), _means(cells), coverage(cells)]
    return "\n\n".join(part for part in parts if part)


def _memories(cells: Cells) -> str:
    peaks = {key: ratio for key in cells if (ratio := _memory(cells, key)) is not None}
    held = {key: ratio for key, cell in cells.items() if (ratio := _held(cell)) is not None}
    if not (peaks and held):
        return ""
    more = [f"{cell_name(key)} ({ratio:.2f})" for key, ratio in sorted(peaks.items()) if ratio > 1]
    least, most = (choose(held, key=lambda key: held[key]) for choose in (min, max))
    return (
        "*memory*: what a run allocates at most beside the weights, over the CUDA Graph's: less in all measured cells"
        f"{' but ' + ', '.join(more) if more else ''}; at most {notes.MEMORY:.1f} times is asked. "
        "What is *held* between runs, weights included, is "
        f"{held[least]:.1f} ({cell_name(least)}) to {held[most]:.1f} times ({cell_name(most)}) the CUDA Graph's: "
        "weights in other layouts, and a workspace of cuBLAS's for every stream."
    )


def _held(cell: Cell) -> float | None:
    """Weights and what is kept beside them, over the CUDA Graph's."""
    own, other = (memory_mib(cell, name) for name in (OURS, SEQUENTIAL))
    return own / other if own and other else None


def _baselines(cells: Cells) -> str:
    return " ".join(part for part in (notes.masks(cells), notes.drift(cells)) if part)


def _means(cells: Cells) -> str:
    means = [
        f"{geometric_mean(ratios):.2f}× at batch {batch} ({len(ratios)} of {len(REQUIRED_MODELS)} models)"
        for batch in (1, 8, 32)
        if (ratios := _ratios(cells, batch))
    ]
    if not means:
        return ""
    return (
        f"Over torch.compile in one sequential graph, float16, the geometric mean is {', '.join(means)}. "
        f"{worst_cell(cells)}"
    )


def _ratios(cells: Cells, batch: int) -> list[float]:
    found = (cells.get(CellKey(model, "float16", batch)) for model in REQUIRED_MODELS)
    return [ratio for cell in found if cell and (ratio := over_one_graph(cell)) is not None]


def table(cells: Cells) -> str:
    """float16, what was run of the required models at batch 1 and 32; times in µs."""
    header = [
        *("model", "batch", "eager, host", "CUDA Graph", "torch.compile", "**opara-serve**"),
        *("over CUDA Graph", "over torch.compile", "memory"),
    ]
    return markdown(header, _rows(cells))


def _rows(cells: Cells) -> Iterator[list[str]]:
    for batch, model in product(BATCHES, REQUIRED_MODELS):
        cell = cells.get(CellKey(model, "float16", batch))
        if cell is None or cell.failed:
            continue
        best = cell.rival(COMPILED, OURS)
        times = [number(cell.time_us(name) if name else None, ".0f") for name in ("eager", SEQUENTIAL, best)]
        yield [
            *(title(model), str(batch), *times, f"**{number(cell.time_us(OURS), '.0f')}**"),
            *(number(over_sequential(cell), ".2f", "×"), number(over_compiled(cell), ".2f", "×")),
            number(_memory(cells, cell.key), ".2f", "×"),
        ]


def _memory(cells: Cells, key: CellKey) -> float | None:
    """What a run of ours allocates at most, over the CUDA Graph's."""
    own, other = (cells[key].systems.get(name) for name in (OURS, SEQUENTIAL))
    if own is None or other is None or not own.peak_bytes or not other.peak_bytes:
        return None
    return own.peak_bytes / other.peak_bytes
