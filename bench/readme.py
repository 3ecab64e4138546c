"""README's table of results, made from the cells that were measured. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from bench.cells import CellKey
from bench.selection import REQUIRED_MODELS
from bench.tables import COMPILED, OURS, SEQUENTIAL, Cells, markdown, number, over_compiled, over_sequential, title

BEGIN, END = "<!-- table:begin, by bench.report -->", "<!-- table:end -->"
BATCHES = (1, 32)


def updated(text: str, cells: Cells) -> str:
    """``text``, a README, with the table of these cells between its marks. Raises ValueError where it has no marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table(cells)}\n{END}{after}"


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
