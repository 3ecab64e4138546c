"""The paper's method on ATen operators: every policy against the sequential schedule, per model.

    python -m bench.engine_aten --model googlenet --model deepfm

Equal treatment as in the suite (``bench.engine``), and one step closer: the same operators for all. Writes one JSON
file and prints a Markdown table; with --graphs also each model's operator graph and profile as data.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bench.cells import CellKey
from bench.environment import environment
from bench.models import MODELS, find_model, require_packages
from bench.provenance import digest, machine
from bench.reference import REPLAYS, Reference, reference
from bench.subject import Lowered, Subject, opened_subject
from bench.systems.runners import Called
from bench.timing import device_times, host_times
from opara_server.engine.capture import capture
from opara_server.engine.contenders import Contender, contenders
from opara_server.engine.device import CapturedGraph, open_device
from opara_server.engine.memory import memory_bytes
from opara_server.engine.policies import POLICIES
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.schedule import Schedule
from opara_server.engine.simulate import simulate
from opara_server.engine.trace import occupancy

Row = dict[str, Any]
HEADING = "# Every policy on the same operators"
LEGEND = """\
The paper's method on PyTorch's own operators (ATen), in turns with other policies, all of them captured as one CUDA
Graph: the first row of a model is its operators in sequence, which *over sequential* is over. *Syncs*: waits between
streams. *Predicted*: by the simulator, from the profile. *Streams' memory*: what the schedule needs for activations,
computed, over the sequential one's; *pool*: what PyTorch's allocator holds for the graph, in whole segments per stream,
over the sequential one's. *Verified*: the error norm against float64, the largest over fresh inputs. Random weights.
What the engine makes of the same models with fused operators: [engine.md](engine.md)."""
SECONDS = 0.3  # of timing, per schedule
NAME_LENGTH = 60  # of a kernel's: C++ template names are kilobytes each


def main(
    model: Annotated[list[str] | None, typer.Option(help="Default: all of bench.models.")] = None,
    dtype: str = "float16",
    batch: int = 1,
    device: str = "auto",
    repeat: Annotated[int, typer.Option(help="Measurements of the whole field; the medians of these are kept.")] = 5,
    output: Path = Path("bench/results/engine_aten.json"),
    graphs: Annotated[Path | None, typer.Option(help="Folder for operator graphs and profiles.")] = None,
) -> None:
    """Measure every policy on every model."""
    names = model or list(MODELS)
    require_packages(names)
    results = []
    for name in names:
        with opened_subject(CellKey(name, dtype, batch), find_model(name), device, SECONDS, 0.0) as subject:
            results.append(run(subject, repeat))
            if graphs:
                _save_graph(subject.key, subject.aten, graphs)
        output.parent.mkdir(parents=True, exist_ok=True)
        written = {"environment": environment(), "results": results}
        output.write_text(json.dumps(written, indent=1) + "\n")
        output.with_suffix(".md").write_text(described(written))
        sys.stdout.write(table(results[-1:]) + "\n")


def described(written: Mapping[str, Any]) -> str:
    """The Markdown of what was written as JSON."""
    where = written["environment"]
    sources = f"Engine sources {digest(where)}." if "engine" in where else "Of an engine that did not tell its sources."
    return "\n\n".join([HEADING, machine([where]), sources, LEGEND, table(written["results"])]) + "\n"


def run(subject: Subject, repeat: int) -> Row:
    """One model's result."""
    eager = host_times([Called(subject.flat, subject.inputs)], subject.device, subject.seconds)[0].median_us
    right = reference(subject)
    program, profile = subject.aten.program, subject.aten.profile
    entrants = contenders(program, profile, POLICIES, subject.device.max_streams)
    captured = [capture(program, entrant.schedule, subject.device) for entrant in entrants]
    pools = [_pool_bytes(program, entrant.schedule, subject.device.kind) for entrant in entrants]
    repeats = [device_times(captured, subject.device, subject.seconds) for _ in range(repeat)]
    medians = [[timing.median_us for timing in timings] for timings in zip(*repeats, strict=True)]
    memory = [memory_bytes(program.graph, entrant.schedule) for entrant in entrants]
    rows = [
        {
            **_schedule_row(subject, entrant),
            "measured_us": statistics.median(medians[number]),
            "runs_us": medians[number],
            "speedup": statistics.median(medians[0]) / statistics.median(medians[number]),
            "streams_bytes": memory[number],
            "streams_bytes_over_sequential": memory[number] / memory[0],
            "pool_bytes": pools[number],
            "pool_bytes_over_sequential": pools[number] / pools[0] if pools[0] else None,
            **_observed(graph, right),
        }
        for number, (entrant, graph) in enumerate(zip(entrants, captured, strict=True))
    ]
    return {
        "model": subject.key.model,
        "dtype": subject.key.dtype,
        "batch": subject.key.batch,
        "operators": len(program.graph),
        "kernels": sum(len(o.kernels) for o in profile.operators),
        "width": program.graph.width,
        "depth": program.graph.depth,
        "longest_path_us": program.graph.longest_path(profile.durations),
        "sum_us": sum(profile.durations),
        "eager_host_us": eager,
        "lower_seconds": subject.aten.lower_seconds,
        "profile_seconds": subject.aten.profile_seconds,
        "candidates": rows,
    }


def _schedule_row(subject: Subject, entrant: Contender) -> Row:
    schedule, lowered = entrant.schedule, subject.aten
    predicted = simulate(lowered.program.graph, schedule, lowered.profile, subject.device.latency)
    return {
        "policy": schedule.policy,
        "compact": entrant.compact,
        "streams": schedule.streams,
        "synchronisations": schedule.synchronisations,
        "predicted_us": predicted.makespan_us,
    }


def _observed(graph: CapturedGraph, right: Reference) -> Row:
    concurrency = occupancy(graph.trace(3)).concurrency
    verdict = right.judge(graph, REPLAYS[-1], graph.arena)
    error = verdict.error if verdict.verified else verdict.detail
    return {"concurrency": concurrency, "error": error, "verified": verdict.verified}


def _pool_bytes(program: Program, schedule: Schedule, kind: str) -> int:
    """What PyTorch's allocator holds for a graph of its own: whole segments, of 2 MiB at least, per stream."""
    if kind != "cuda":
        return 0
    alone = open_device(kind)
    graph = capture(program, schedule, alone)
    segments = torch.cuda.memory_snapshot()
    held = sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == graph.pool)  # type: ignore[attr-defined]
    alone.close()
    return int(held)


def _save_graph(key: CellKey, lowered: Lowered, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = {**asdict(key), "graph": lowered.program.graph.to_json(), "profile": _slim(lowered.profile)}
    (folder / f"{key.model}.json").write_text(json.dumps(data, separators=(",", ":")) + "\n")


def _slim(profile: Profile) -> Row:
    """The profile with kernel names cut."""
    data = asdict(profile)
    for operator in data["operators"]:
        for kernel in operator["kernels"]:
            kernel["name"] = kernel["name"][:NAME_LENGTH]
    return data


def table(results: list[Row]) -> str:
    lines = [
        "| model | policy | streams | syncs | predicted µs | measured µs | over sequential "
        "| streams' memory | pool | verified |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for row in result["candidates"]:
            name = row["policy"] + (", compacted" if row["compact"] else "")
            verified = f"{row['error']:.1e}" if row["verified"] else f"NO: {row['error']}"
            pool = row["pool_bytes_over_sequential"]
            memory = f"{row['streams_bytes_over_sequential']:.2f} | {'–' if pool is None else f'{pool:.2f}'}"
            times = f"{row['predicted_us']:.0f} | {row['measured_us']:.1f} | {row['speedup']:.2f}"
            lines.append(
                f"| {result['model']} {result['dtype']} ×{result['batch']} | {name} | {row['streams']} "
                f"| {row['synchronisations']} | {times} | {memory} | {verified} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
