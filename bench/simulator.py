"""Measures random schedules and those of the policies, to judge the simulator by.

    python -m bench.simulator --model googlenet --model deepfm --batch 1 --batch 8

Per model, bucket and lowering one file of operator graph, profile, schedules and measured times in
``bench/data/schedules``, from which ``bench.prediction`` makes the table, now and after any change to the simulator.
What is there is not measured again. Nothing is pruned; every schedule is checked to be a right one when it is captured,
and as nobody reads the outputs, their numbers are not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.environment import environment
from bench.models import MODELS
from bench.prediction import Measured, Record, load, record_path, report, save
from opara_server.engine.capture import capture
from opara_server.engine.device import CapturedGraph, Device, open_device
from opara_server.engine.export import export_all
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.lowerings import Lowerings
from opara_server.engine.options import ATEN
from opara_server.engine.policies import POLICIES, make_schedule
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.random_schedules import random_schedules
from opara_server.engine.schedule import Schedule, fold
from opara_server.engine.select import measure
from opara_server.engine.tensors import static_inputs, torch_dtype

NAME_LENGTH = 40  # of a kernel's: C++ template names are kilobytes each


def main(
    model: Annotated[list[str] | None, typer.Option(help="Default: all of bench.models.")] = None,
    lowering: Annotated[list[str] | None, typer.Option(help="Default: aten and fused.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Default: 1.")] = None,
    dtype: str = "float16",
    device: str = "auto",
    schedules: Annotated[int, typer.Option(help="Random ones per model, bucket and lowering.")] = 40,
    seconds: Annotated[float, typer.Option(help="Of measuring, per schedule.")] = 0.05,
    data: Path = Path("bench/data/schedules"),
    output: Path = Path("bench/results/simulator.json"),
) -> None:
    opened = open_device(device)
    try:
        with opened.bind(), opened.tuning():
            for name in model or list(MODELS):
                wanted = [
                    (lowered, rows)
                    for lowered in lowering or (ATEN, "fused")
                    for rows in sorted(batch or [1], reverse=True)
                    if not record_path(data, name, lowered, dtype, rows).exists()
                ]
                for record in records(name, wanted, dtype, opened, schedules, seconds):
                    save(record, data)
        typer.echo(report([load(path) for path in sorted(data.glob("*.json.gz"))], opened.latency, output))
    finally:
        opened.close()


def records(
    name: str, wanted: list[tuple[str, int]], dtype: str, device: Device, count: int, seconds: float
) -> Iterator[Record]:
    """One for each of the ``wanted`` lowerings and batch sizes that can be had, as soon as it is measured."""
    if not wanted:
        return
    bench = MODELS[name]
    torch.manual_seed(0)
    with torch.inference_mode(False):
        module = bench.build().to(device.torch_device(), torch_dtype(dtype))
        if bench.channels_last:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    where = device.torch_device()
    inputs = {rows: static_inputs(bench.inputs(dtype), rows, where, bench.channels_last) for _, rows in wanted}
    flat = FlatModule(module, bench.inputs(dtype), max(inputs), where, bench.channels_last)
    lowerings = Lowerings(name, export_all(flat.module, inputs))
    for lowering, rows in wanted:
        begin = time.perf_counter()
        simplest = [lowerings.simplest(rows, inputs[rows])] if lowering == ATEN else []
        programs = simplest or lowerings.fused(rows, inputs[rows], [lowering])
        for program in programs:
            profile = device.profile(program)
            schedules = candidates(program, profile, count, rows, device.max_streams)
            lowered = time.perf_counter()
            measured = time_all(program, schedules, device, seconds)
            typer.echo(
                f"{name} {program.lowering} x{rows}: lowered and profiled in {lowered - begin:.1f} s, "
                f"{len(measured)} schedules captured and measured in {time.perf_counter() - lowered:.1f} s"
            )
            yield Record(name, program.lowering, dtype, rows, environment(), program.graph, slim(profile), measured)


def candidates(program: Program, profile: Profile, count: int, seed: int, limit: int) -> list[Schedule]:
    """The policies' schedules and ``count`` random ones, on at most ``limit`` streams each. Of those that are equal but
    for their policy, the first."""
    schedules = [fold(program.graph, make_schedule(program.graph, profile, name), limit) for name in POLICIES]
    schedules += random_schedules(program.graph, count, seed, limit)
    found: dict[object, Schedule] = {}
    for schedule in schedules:
        found.setdefault((schedule.steps, schedule.urgent), schedule)
    return list(found.values())


def time_all(program: Program, schedules: list[Schedule], device: Device, seconds: float) -> tuple[Measured, ...]:
    """All are captured before any is closed: destroying one may harm those that live (pytorch/pytorch#193402)."""
    graphs: list[CapturedGraph] = [capture(program, schedule, device) for schedule in schedules]
    timings = measure(graphs, device, seconds)
    for graph in graphs:
        graph.close()
    return tuple(
        Measured(schedule, timing.median, timing.spread) for schedule, timing in zip(schedules, timings, strict=True)
    )


def slim(profile: Profile) -> Profile:
    """Kernel names and times no longer than anybody reads them."""
    return replace(
        profile,
        operators=tuple(
            replace(o, kernels=tuple(replace(k, name=k.name[:NAME_LENGTH]) for k in o.kernels))
            for o in profile.operators
        ),
    )


if __name__ == "__main__":
    typer.run(main)
