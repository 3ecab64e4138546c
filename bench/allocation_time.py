"""How long stream allocation takes: Algorithm 1 against Nimble's, on the models of the paper's Table 1.

``python -m bench.allocation_time`` reads operator graphs from ``bench/data/<model>.json`` and writes
``bench/results/allocation_time.json`` and ``.md``. Needs no GPU and no torch.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from math import log
from pathlib import Path
from random import Random
from statistics import linear_regression, median
from timeit import timeit
from typing import Annotated, Any

import typer
from rich.progress import track

from bench.paper import TABLE_1
from bench.selection import TITLES
from opara_server.engine.graph import OperatorGraph
from opara_server.engine.policies.nimble import allocate_streams as allocate_by_nimble
from opara_server.engine.policies.opara import allocate_streams as allocate_by_opara

HERE = Path(__file__).parent
IN_DEGREE = 3
LINEAR_SIZES = tuple(1000 * 2**power for power in range(7))  # 1,000 to 64,000 operators


@dataclass(frozen=True)
class ModelResult:
    """Medians in ms; ``edges`` are those of the operator graph."""

    model: str
    operators: int
    edges: int
    width: int
    opara_ms: float
    nimble_ms: float
    opara_streams: int
    nimble_streams: int


@dataclass(frozen=True)
class LinearPoint:
    operators: int
    edges: int
    opara_ms: float


Allocate = Callable[[OperatorGraph], list[int]]


def time_once(allocate: Allocate, graph: OperatorGraph) -> float:
    """In ms, on a copy of ``graph`` that has nothing derived and cached yet: closure and successors count as work."""
    fresh = replace(graph)
    return 1e3 * timeit(lambda: allocate(fresh), number=1)


def edges(graph: OperatorGraph) -> int:
    return sum(len(sources) for sources in graph.predecessors)


def measure_model(model: str, graph: OperatorGraph, repeats: int) -> ModelResult:
    """The two allocations in turn, so that both see the same machine."""
    algorithms: tuple[Allocate, Allocate] = (allocate_by_opara, allocate_by_nimble)
    times = [[time_once(allocate, graph) for allocate in algorithms] for _ in range(repeats)]
    opara_ms, nimble_ms = (median(column) for column in zip(*times, strict=True))
    opara_streams, nimble_streams = (len(set(allocate(graph))) for allocate in algorithms)
    return ModelResult(model, len(graph), edges(graph), graph.width, opara_ms, nimble_ms, opara_streams, nimble_streams)


def random_graph(operators: int, random: Random) -> OperatorGraph:
    """Every operator has IN_DEGREE predecessors (the first few: all there are) among the 64 before it."""
    links = [
        (source, operator)
        for operator in range(1, operators)
        for source in random.sample(range(max(0, operator - 64), operator), min(IN_DEGREE, operator))
    ]
    return OperatorGraph.from_edges(operators, links)


def measure_growth(repeats: int) -> tuple[list[LinearPoint], float]:
    """Algorithm 1 on ever larger random graphs, and the exponent of its time in their size (1.0: linear)."""
    graphs = [random_graph(operators, Random(operators)) for operators in LINEAR_SIZES]
    rounds = track(range(repeats), "growing graphs")
    times = [[time_once(allocate_by_opara, graph) for graph in graphs] for _ in rounds]
    medians = [median(column) for column in zip(*times, strict=True)]
    points = [LinearPoint(len(graph), edges(graph), ms) for graph, ms in zip(graphs, medians, strict=True)]
    fit = linear_regression([log(size) for size in LINEAR_SIZES], [log(ms) for ms in medians])
    return points, fit.slope


def machine() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "system": platform.system(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def markdown(report: dict[str, Any], results: dict[str, ModelResult], points: list[LinearPoint]) -> str:
    host = report["machine"]
    lines = [
        "# Stream allocation time",
        "",
        f"{host['processor']}, {host['system']}, {host['python']}, {host['date']}. Median of {report['repeats']} runs, "
        "the two algorithms in turn. Both are this project's: Nimble's with bit sets and Hopcroft-Karp matching. The "
        "paper's figures are of its authors' machine and code; operators are counted after `torch.export`.",
        "",
        "| model | operators | edges | width | Algorithm 1, ms | Nimble, ms | ratio | streams | paper, ms | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model, paper in TABLE_1.items():
        published = f"{paper.opara_ms} / {paper.nimble_ms} | {paper.nimble_ms / paper.opara_ms:.0f}"
        if model not in results:
            lines.append(f"| {TITLES[model]} | not run | | | | | | | {published} |")
            continue
        seen = results[model]
        lines.append(
            f"| {TITLES[model]} | {seen.operators} | {seen.edges} | {seen.width} | {seen.opara_ms:.3f} | "
            f"{seen.nimble_ms:.3f} | {seen.nimble_ms / seen.opara_ms:.0f} | "
            f"{seen.opara_streams} / {seen.nimble_streams} | {published} |"
        )
    lines += [
        "",
        f"Algorithm 1 on random graphs with {IN_DEGREE} predecessors per operator: time grows with the number of "
        f"operators to the power of **{report['growth']['exponent']:.2f}**.",
        "",
        "| operators | edges | ms | µs per operator |",
        "|---|---|---|---|",
        *(f"| {p.operators} | {p.edges} | {p.opara_ms:.2f} | {1e3 * p.opara_ms / p.operators:.3f} |" for p in points),
        "",
    ]
    return "\n".join(lines)


def main(
    data: Annotated[Path, typer.Option(help="Folder of operator graphs, <model>.json.")] = HERE / "data",
    results_dir: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = HERE / "results",
    repeats: Annotated[int, typer.Option(min=1, help="Runs per model and algorithm.")] = 201,
    growth_repeats: Annotated[int, typer.Option(min=1, help="Runs per random graph.")] = 21,
) -> None:
    """Time stream allocation and write a JSON file and a Markdown table."""
    results: dict[str, ModelResult] = {}
    for model in track(TABLE_1, "models"):
        path = data / f"{model}.json"
        if path.exists():
            graph = OperatorGraph.from_json(json.loads(path.read_text())["graph"])
            results[model] = measure_model(model, graph, repeats)
    points, exponent = measure_growth(growth_repeats)
    report = {
        "machine": machine(),
        "repeats": repeats,
        "models": [asdict(results[m]) if m in results else {"model": m, "not_run": f"no {m}.json"} for m in TABLE_1],
        "paper": {model: asdict(row) for model, row in TABLE_1.items()},
        "growth": {"in_degree": IN_DEGREE, "exponent": exponent, "points": [asdict(point) for point in points]},
    }
    results_dir.mkdir(parents=True, exist_ok=True)
    (results_dir / "allocation_time.json").write_text(json.dumps(report, indent=1) + "\n")
    table = markdown(report, results, points)
    (results_dir / "allocation_time.md").write_text(table)
    print(table)


if __name__ == "__main__":
    typer.run(main)
