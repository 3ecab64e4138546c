"""The paper's method on ATen operators: every policy against the sequential CUDA Graph, per model.

    python -m bench.engine_aten --model googlenet --model deepfm

Equal treatment: one process, the same operators, inputs and layouts, cudnn.benchmark for all; every graph is verified
against float64 and 100 replays; the graphs replay in turns and the medians of CUDA event times are compared. Writes one
JSON file and prints a Markdown table; with --graphs also each model's operator graph and profile as data.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bench.environment import environment
from bench.models import MODELS, BenchModel
from opara_server.engine.capture import capture
from opara_server.engine.device import Device, open_device
from opara_server.engine.errors import VerificationError
from opara_server.engine.export import export_dynamic, export_static
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.lower_aten import lower
from opara_server.engine.options import AUTO
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.schedule import Schedule, memory_bytes
from opara_server.engine.select import contenders, measure
from opara_server.engine.simulate import simulate
from opara_server.engine.tensors import static_inputs, torch_dtype
from opara_server.engine.trace import occupancy
from opara_server.engine.verify import Verifier

Row = dict[str, Any]


def main(
    model: Annotated[list[str] | None, typer.Option(help="Default: all of bench.models.")] = None,
    dtype: str = "float16",
    batch: int = 1,
    device: str = "auto",
    repeat: Annotated[int, typer.Option(help="Measurements of the whole field; the medians of these are kept.")] = 5,
    output: Path = Path("bench/results/engine_aten.json"),
    graphs: Annotated[Path | None, typer.Option(help="Folder for operator graphs and profiles.")] = None,
) -> None:
    results = []
    for name in model or list(MODELS):
        opened = open_device(device)
        try:
            with opened.bind(), opened.tuning():
                result, program, profile = run(name, MODELS[name], dtype, batch, opened, repeat)
        finally:
            opened.close()
        results.append(result)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")
        if graphs:
            graphs.mkdir(parents=True, exist_ok=True)
            data = {
                "model": name,
                "dtype": dtype,
                "batch": batch,
                "graph": program.graph.to_json(),
                "profile": _slim(profile),
            }
            (graphs / f"{name}.json").write_text(json.dumps(data, separators=(",", ":")) + "\n")
        sys.stdout.write(table([result]) + "\n")
    output.with_suffix(".md").write_text(table(results) + "\n")


def run(
    name: str, bench: BenchModel, dtype: str, batch: int, device: Device, repeat: int
) -> tuple[Row, Program, Profile]:
    torch.manual_seed(0)
    module = bench.build().to(device.torch_device(), torch_dtype(dtype))
    if bench.channels_last:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    flat = FlatModule(module, bench.inputs(dtype), batch, device.torch_device(), bench.channels_last)
    begin = time.perf_counter()
    program = _lower(flat, batch, device, bench.channels_last)
    lowered = time.perf_counter()
    profile = device.profile(program)
    verifier = Verifier(flat, device, None)
    entrants = contenders(program, profile, AUTO, device.max_streams)
    captured = [capture(program, entrant.schedule, device) for entrant in entrants]
    profiled = time.perf_counter()
    pools = [_pool_bytes(program, entrant.schedule, device) for entrant in entrants]
    rows: list[Row] = []
    medians = [[timing.median for timing in measure(captured, device)] for _ in range(repeat)]
    for number, (entrant, graph) in enumerate(zip(entrants, captured, strict=True)):
        measured = statistics.median(times[number] for times in medians)
        seen = occupancy(graph.trace(3))
        rows.append(
            {
                "policy": entrant.schedule.policy,
                "compact": entrant.compact,
                "streams": entrant.schedule.streams,
                "synchronisations": entrant.schedule.synchronisations,
                "predicted_us": simulate(program.graph, entrant.schedule, profile, device.latency).makespan_us,
                "measured_us": measured,
                "runs_us": [times[number] for times in medians],
                "speedup": statistics.median(times[0] for times in medians) / measured,
                "streams_bytes": memory_bytes(program.graph, entrant.schedule),
                "streams_bytes_over_sequential": memory_bytes(program.graph, entrant.schedule)
                / memory_bytes(program.graph, entrants[0].schedule),
                "pool_bytes": pools[number],
                "pool_bytes_over_sequential": pools[number] / pools[0] if pools[0] else None,
                "concurrency": seen.concurrency,
                **_verified(verifier, graph),
            }
        )
    result = {
        "model": name,
        "dtype": dtype,
        "batch": batch,
        "operators": len(program.graph),
        "kernels": sum(len(o.kernels) for o in profile.operators),
        "width": program.graph.width,
        "depth": program.graph.depth,
        "longest_path_us": program.graph.longest_path(profile.durations),
        "sum_us": sum(profile.durations),
        "eager_us": _eager_us(flat, batch, device, bench.channels_last),
        "lower_seconds": lowered - begin,
        "profile_and_capture_seconds": profiled - lowered,
        "bound": verifier.bound,
        "candidates": rows,
    }
    return result, program, profile


def _lower(flat: FlatModule, batch: int, device: Device, channels_last: bool) -> Program:
    example = static_inputs(flat.inputs, max(batch, 2), device.torch_device(), channels_last)
    inputs = static_inputs(flat.inputs, batch, device.torch_device(), channels_last)
    return lower(export_dynamic(flat.module, example) or export_static(flat.module, inputs), inputs)


def _pool_bytes(program: Program, schedule: Schedule, device: Device) -> int:
    """What PyTorch's allocator holds for a graph of its own: whole segments, of 2 MiB at least, per stream."""
    if device.kind != "cuda":
        return 0
    alone = open_device(device.kind)
    graph = capture(program, schedule, alone)
    segments = torch.cuda.memory_snapshot()
    held = sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == graph.pool)  # type: ignore[attr-defined]
    alone.close()
    return int(held)


def _verified(verifier: Verifier, graph: Any) -> Row:
    try:
        return {"error": verifier.check(graph), "verified": True}
    except VerificationError as error:
        return {"error": str(error), "verified": False}


def _eager_us(flat: FlatModule, batch: int, device: Device, channels_last: bool) -> float:
    inputs = static_inputs(flat.inputs, batch, device.torch_device(), channels_last)
    times = []
    for _ in range(30):
        start = device.stamp()
        flat(*inputs)
        end = device.stamp()
        device.synchronize()
        times.append(start.elapsed_us(end))
    return statistics.median(times)


def _slim(profile: Profile) -> Row:
    """The profile with kernel names cut: C++ template names are kilobytes each."""
    data = asdict(profile)
    for operator in data["operators"]:
        for kernel in operator["kernels"]:
            kernel["name"] = kernel["name"][:60]
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
