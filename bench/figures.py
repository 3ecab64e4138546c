"""The paper's figures and table from our cells, as Markdown with the paper's values beside ours. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cells import Cell, CellKey
from bench.paper import FIGURE_2, FIGURE_5, FIGURE_8, FIGURE_9, GOOGLENET_STREAMS, PROFILING_MS, TABLE_1
from bench.selection import ALL_MODELS, BATCHES
from bench.tables import NOT_RUN, OURS, SEQUENTIAL, SHORT, Cells, compiled_over, markdown, number, title

LIKE_THE_PAPER = ("float32", "float16")  # which dtype's cells stand for the paper's, if they were run
SCHEDULED = ("sequential", "wavefront", "nimble", "opara", OURS)


def paper_cell(cells: Cells, model: str, batch: int = 1) -> Cell | None:
    """The cell most like the paper's measurement: float32 where there is one."""
    found = (cells.get(CellKey(model, dtype, batch)) for dtype in LIKE_THE_PAPER)
    return next((cell for cell in found if cell and not cell.failed), None)


@dataclass(frozen=True)
class OrderStudy:
    """Times in µs of one stream assignment launched in several orders, fastest first."""

    key: CellKey
    times: Mapping[str, float]

    @property
    def worth(self) -> float:
        """How much longer the slowest order takes than the fastest."""
        return max(self.times.values()) / min(self.times.values()) - 1

    @property
    def excess(self) -> float:
        """How much longer Algorithm 2's order takes than the fastest."""
        return self.times["Algorithm 2"] / min(self.times.values()) - 1


def order_studies(cells: Cells) -> list[OrderStudy]:
    keys = sorted(cells, key=lambda key: (ALL_MODELS.index(key.model) if key.model in ALL_MODELS else 99, key))
    return [
        OrderStudy(key, {order["name"]: order["median_us"] for order in cells[key].studies["launch_order"]})
        for key in keys
        if cells[key].studies.get("launch_order")
    ]


def figure_2(cells: Cells) -> str:
    rows = [
        [
            *(title(study.key.model), study.key.dtype, min(study.times, key=lambda name: study.times[name])),
            *(f"{min(study.times.values()):.1f}", f"{max(study.times.values()):.1f}"),
            *(f"{study.worth:.1%}", f"{study.excess:+.1%}"),
        ]
        for study in order_studies(cells)
    ]
    rows = rows or [[NOT_RUN, *[""] * 6]]
    rows += [[f"the paper, {gpu}", *[""] * 4, f"up to {worth:.1%}", ""] for gpu, worth in FIGURE_2.items()]
    header = [
        "model",
        "dtype",
        "fastest order",
        "fastest µs",
        "slowest µs",
        "slowest over fastest",
        "Algorithm 2 over fastest",
    ]
    return markdown(header, rows)


def figure_5a(cells: Cells) -> str:
    """Over eager PyTorch, by the host's clock: ours / the paper's."""
    rows = []
    for model, paper in FIGURE_5.items():
        cell = paper_cell(cells, model)
        published = {
            "sequential": paper.cuda_graph,
            "wavefront": paper.wavefront,
            "nimble": paper.nimble,
            "opara": paper.opara,
        }
        ran = [_beside(cell.speedup("eager", n) if cell else None, p) for n, p in published.items()]
        compiled = compiled_over(cell, "eager") if cell else None
        rows.append(
            [
                *(title(model), cell.key.dtype if cell else NOT_RUN, ran[0], f"– / {paper.onnx_runtime:.2f}", *ran[1:]),
                _beside(cell.speedup(SEQUENTIAL, "opara") if cell else None, paper.opara_over_cuda_graph),
                *(number(compiled), number(cell.speedup("eager", OURS) if cell else None)),
                paper.gpu,
            ]
        )
    header = [
        *("model", "dtype", "CUDA Graph", "ONNX Runtime", "wavefront", "Nimble", "Opara", "Opara over CUDA Graph"),
        *("best torch.compile", "opara-serve", "paper's GPU"),
    ]
    return markdown(header, rows)


def figure_5b(cells: Cells) -> str:
    """SM utilisation and memory of the sequential CUDA Graph, Opara as published, and this engine."""
    rows = []
    for model, paper in FIGURE_5.items():
        cell = paper_cell(cells, model)
        use = [_use(cell, name) for name in (SEQUENTIAL, "opara", OURS)]
        memory = [number(memory_mib(cell, name), ".1f") for name in (SEQUENTIAL, "opara", OURS)]
        rows.append(
            [
                *(title(model), cell.key.dtype if cell else NOT_RUN),
                *(" → ".join(use), " → ".join(f"{value:.0f}%" for value in paper.sm_efficiency)),
                *(" → ".join(memory), " → ".join(f"{value:.0f}" for value in paper.peak_mb), paper.gpu),
            ]
        )
    systems = "CUDA Graph → Opara"
    header = [
        *("model", "dtype", f"SM utilisation, {systems} → opara-serve", f"the paper's SM efficiency, {systems}"),
        *(f"memory MiB, {systems} → opara-serve", f"the paper's MB, {systems}", "paper's GPU"),
    ]
    return markdown(header, rows)


def sm_utilisation(cell: Cell | None, name: str) -> float | None:
    result = cell.systems.get(name) if cell else None
    return result.sm_utilisation if result else None


def _use(cell: Cell | None, name: str) -> str:
    return number(sm_utilisation(cell, name), ".0%")


def memory_mib(cell: Cell | None, name: str) -> float | None:
    """Weights and what the system holds beside them."""
    result = cell.systems.get(name) if cell else None
    if cell is None or result is None or result.held_bytes is None or "weights_bytes" not in cell.graph:
        return None
    return (cell.graph["weights_bytes"] + result.held_bytes) / 2**20


def batch_series(cells: Cells, dtype: str, system: str, model: str = "inception_v3") -> dict[int, float]:
    """Speed-up over the sequential CUDA Graph by batch size."""
    found = {batch: cells.get(CellKey(model, dtype, batch)) for batch in BATCHES}
    return {b: ratio for b, cell in found.items() if cell and (ratio := cell.speedup(SEQUENTIAL, system)) is not None}


def figures_8_and_9(cells: Cells) -> str:
    dtypes = ("float16", "float32")
    series = {(dtype, system): batch_series(cells, dtype, system) for dtype in dtypes for system in ("opara", OURS)}
    rows = [
        [
            *(str(batch), *(f"{by[batch]:.2f}" if batch in by else NOT_RUN for by in series.values())),
            *(number(published.get(batch)) for published in (FIGURE_8, FIGURE_9)),
        ]
        for batch in BATCHES
    ]
    measured = [f"{SHORT[system]}, {dtype}" for dtype, system in series]
    return markdown(["batch", *measured, "Fig. 8: Opara, 2080 SUPER", "Fig. 9: Opara, A100"], rows)


@dataclass(frozen=True)
class Allocation:
    """In ms."""

    operators: int
    opara_ms: float
    nimble_ms: float


def load_allocations(path: Path) -> dict[str, Allocation]:
    """From what ``bench.allocation_time`` wrote; empty where it has not been run."""
    if not path.exists():
        return {}
    models: Sequence[Mapping[str, Any]] = json.loads(path.read_text())["models"]
    return {
        str(m["model"]): Allocation(m["operators"], m["opara_ms"], m["nimble_ms"]) for m in models if "not_run" not in m
    }


def table_1(cells: Cells, allocations: Mapping[str, Allocation]) -> str:
    rows = []
    for model, paper in TABLE_1.items():
        seen, cell = allocations.get(model), paper_cell(cells, model)
        profile = cell.graph.get("profile_seconds") if cell else None
        ours = [f"{seen.opara_ms:.3f}", f"{seen.nimble_ms:.3f}"] if seen else [NOT_RUN] * 2
        ratio = f"{seen.nimble_ms / seen.opara_ms:.0f}×" if seen else "–"
        rows.append(
            [
                *(title(model), str(seen.operators) if seen else "–", *ours, ratio),
                *(f"{paper.opara_ms} / {paper.nimble_ms}", f"{paper.nimble_ms / paper.opara_ms:.0f}×"),
                NOT_RUN if profile is None else f"{1e3 * profile:.0f} / {PROFILING_MS}",
            ]
        )
    header = [
        *("model", "operators", "Algorithm 1, ms", "Nimble, ms", "ratio", "paper: Algorithm 1 / Nimble, ms", "ratio"),
        "profiling, ms: ours / paper",
    ]
    return markdown(header, rows)


def streams(cells: Cells) -> str:
    """One sentence: streams on GoogLeNet."""
    cell = paper_cell(cells, "googlenet")
    found = {name: cell.systems[name].streams for name in SCHEDULED if name in cell.systems} if cell else {}
    ours = ", ".join(f"{SHORT[name]} {count}" for name, count in found.items() if count) or NOT_RUN
    paper = ", ".join(f"{SHORT[name]} {count}" for name, count in GOOGLENET_STREAMS.items())
    return f"Streams on GoogLeNet: {ours}; in the paper: {paper}."


def _beside(ours: float | None, paper: float) -> str:
    return f"{number(ours)} / {paper:.2f}"
