"""Measures random schedules and those of the policies, to judge the simulator by.

    python -m bench.simulator --model googlenet --model deepfm --batch 1 --batch 8

Per model, bucket and lowering one file of operator graph, profile, schedules and measured times in
``bench/data/schedules``, from which ``bench.prediction`` makes the table, now and after any change to the simulator.
What is there is not measured again. Nothing is pruned; every schedule is checked to be a right one when it is captured,
and as nobody reads the outputs, their numbers are not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.environment import environment
from bench.models import MODELS
from bench.prediction import Measured, Record, load, report, save
from opara_server.engine.capture import capture
from opara_server.engine.device import CapturedGraph, Device, open_device
from opara_server.engine.export import export_dynamic, export_static
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.lower_aten import lower
from opara_server.engine.options import AUTO
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.random_schedules import random_schedules
from opara_server.engine.schedule import Schedule
from opara_server.engine.select import contenders, measure
from opara_server.engine.tensors import static_inputs, torch_dtype

Lower = Callable[[FlatModule, int, Device, bool], Program]  # (module, batch, device, channels_last)
NAME_LENGTH = 40  # of a kernel's: C++ template names are kilobytes each


def lower_aten(flat: FlatModule, batch: int, device: Device, channels_last: bool) -> Program:
    example = static_inputs(flat.inputs, max(batch, 2), device.torch_device(), channels_last)
    inputs = static_inputs(flat.inputs, batch, device.torch_device(), channels_last)
    return lower(export_dynamic(flat.module, example) or export_static(flat.module, inputs), inputs)


LOWERINGS: dict[str, Lower] = {"aten": lower_aten}


def main(
    model: Annotated[list[str] | None, typer.Option(help="Default: all of bench.models.")] = None,
    lowering: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(LOWERINGS)}; default: all.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Default: 1.")] = None,
    dtype: str = "float16",
    device: str = "auto",
    schedules: Annotated[int, typer.Option(help="Random ones per model, bucket and lowering.")] = 40,
    seconds: Annotated[float, typer.Option(help="Of measuring, per schedule.")] = 0.05,
    data: Path = Path("bench/data/schedules"),
    output: Path = Path("bench/results/simulator.json"),
) -> None:
    for name in model or list(MODELS):
        for rows in batch or [1]:
            for lowered in lowering or list(LOWERINGS):
                path = data / f"{name}-{lowered}-{dtype}-{rows}.json.gz"
                if path.exists():
                    continue
                begin = time.perf_counter()
                record = run(name, lowered, dtype, rows, device, schedules, seconds)
                save(record, data)
                typer.echo(f"{record.name}: {len(record.measured)} schedules, {time.perf_counter() - begin:.1f} s")
    opened = open_device(device)
    latency = opened.latency
    opened.close()
    typer.echo(report([load(path) for path in sorted(data.glob("*.json.gz"))], latency, output))


def run(name: str, lowering: str, dtype: str, batch: int, kind: str, count: int, seconds: float) -> Record:
    bench = MODELS[name]
    device = open_device(kind)
    torch.manual_seed(0)
    try:
        with device.bind(), device.tuning():
            module = bench.build().to(device.torch_device(), torch_dtype(dtype))
            if bench.channels_last:
                module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            flat = FlatModule(module, bench.inputs(dtype), batch, device.torch_device(), bench.channels_last)
            program = LOWERINGS[lowering](flat, batch, device, bench.channels_last)
            profile = device.profile(program)
            entrants = [entrant.schedule for entrant in contenders(program, profile, AUTO, device.max_streams)]
            entrants += random_schedules(program.graph, count, seed=batch, limit=device.max_streams)
            measured = time_all(program, list(distinct(entrants)), device, seconds)
    finally:
        device.close()
    return Record(name, lowering, dtype, batch, environment(), program.graph, _slim(profile), measured)


def distinct(schedules: Iterable[Schedule]) -> Iterable[Schedule]:
    """Of those that are equal but for the policy, the first."""
    found: dict[object, Schedule] = {}
    for schedule in schedules:
        found.setdefault((schedule.steps, schedule.urgent), schedule)
    return found.values()


def time_all(program: Program, schedules: list[Schedule], device: Device, seconds: float) -> tuple[Measured, ...]:
    """All are captured before any is closed: destroying one may harm those that live (pytorch/pytorch#193402)."""
    graphs: list[CapturedGraph] = [capture(program, schedule, device) for schedule in schedules]
    timings = measure(graphs, device, seconds)
    for graph in graphs:
        graph.close()
    return tuple(
        Measured(schedule, timing.median, timing.spread) for schedule, timing in zip(schedules, timings, strict=True)
    )


def _slim(profile: Profile) -> Profile:
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
