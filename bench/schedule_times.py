"""Schedules of one model in one bucket, measured in a process of their own: random ones and those of the policies.

    python -m bench.schedule_times googlenet float16 1 --lowering fused_rewritten --folder DIR

Compiles, prints a line READY and waits for one on standard input before the device is used for more, as ``bench.cell``
does; ``bench.simulator`` is who starts it. Nothing is pruned; every schedule is checked to be a right one when it is
captured, and as nobody reads the outputs, their numbers are not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Annotated

import typer

from bench.cells import CellKey
from bench.child import READY
from bench.environment import environment
from bench.models import find_model
from bench.prediction import Measured, Record, save
from bench.subject import Subject, opened_subject, settings
from bench.timing import Runner, device_times
from opara_server.engine.capture import capture
from opara_server.engine.device import Device
from opara_server.engine.errors import LoweringError
from opara_server.engine.export import export_static
from opara_server.engine.lower_fused import lower_fused
from opara_server.engine.options import ATEN
from opara_server.engine.policies import POLICIES, make_schedule, quick_policies
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.random_schedules import random_schedules
from opara_server.engine.rewrites import Weights
from opara_server.engine.schedule import Schedule, fold

NAME_LENGTH = 40  # of a kernel's: C++ template names are kilobytes each
PASSES = 3  # over all schedules, each in another order


def main(
    model: str,
    dtype: str,
    batch: int,
    lowering: Annotated[list[str], typer.Option(help="May be repeated.")],
    folder: Annotated[Path, typer.Option(help="Where the records go.")],
    device: str = "cuda",
    schedules: Annotated[int, typer.Option(help="Random ones per lowering.")] = 24,
    seconds: Annotated[float, typer.Option(help="Of measuring, per schedule.")] = 0.06,
) -> None:
    """Measure one model at one dtype and batch size. What a lowering refuses is said at the end, on standard error."""
    with opened_subject(CellKey(model, dtype, batch), find_model(model), device, seconds, 0.0) as subject:
        programs: list[Program] = []
        refused: list[str] = []
        for name in lowering:
            try:
                programs.append(lower(subject, name))
            except LoweringError as error:
                refused.append(f"no {name}: {error}")
        _wait_for_turn()
        for program in programs:
            save(record_of(subject, program, schedules), folder)
    if refused:
        sys.exit("; ".join(refused))


def lower(subject: Subject, lowering: str) -> Program:
    """Raises LoweringError where it cannot be had."""
    if lowering == ATEN:
        return subject.operators[0]
    return lower_fused(export_static(subject.flat.module, subject.inputs), subject.inputs, lowering, Weights())


def record_of(subject: Subject, program: Program, count: int) -> Record:
    """With ``count`` random schedules, where the graph has so many."""
    key, device = subject.key, subject.device
    profile = device.profile(program)
    schedules = candidates(program, profile, count, key.batch, device.max_streams)
    measured = time_all(program, schedules, device, subject.seconds)
    described = environment() | {"device": device.kind, "settings": settings(subject)}
    return Record(key.model, program.lowering, key.dtype, key.batch, described, program.graph, slim(profile), measured)


def candidates(program: Program, profile: Profile, count: int, seed: int, limit: int) -> list[Schedule]:
    """The policies' schedules and ``count`` random ones, on at most ``limit`` streams each. Of those that are equal but
    for their policy, the first."""
    names = dict.fromkeys([*POLICIES, *quick_policies(program.graph.width)])
    schedules = [fold(program.graph, make_schedule(program.graph, profile, name), limit) for name in names]
    schedules += random_schedules(program.graph, count, seed, limit)
    found: dict[object, Schedule] = {}
    for schedule in schedules:
        found.setdefault((schedule.steps, schedule.urgent), schedule)
    return list(found.values())


def time_all(program: Program, schedules: Sequence[Schedule], device: Device, seconds: float) -> tuple[Measured, ...]:
    """All are captured before any is closed: destroying one may harm those that live (pytorch/pytorch#193402).

    ``spread``: by how much a schedule's medians of PASSES passes differ.
    """
    graphs = [capture(program, schedule, device) for schedule in schedules]
    medians = in_passes(graphs, device, seconds / PASSES)
    for graph in graphs:
        graph.close()
    return tuple(
        Measured(schedule, median(times), (max(times) - min(times)) / median(times))
        for schedule, times in zip(schedules, medians, strict=True)
    )


def in_passes(graphs: Sequence[Runner], device: Device, seconds: float) -> list[list[float]]:
    """Per graph its median, in µs, in each of PASSES passes over all of them, every time in another order: what else
    runs on a device now and then may keep step with the turns of one."""
    medians: list[list[float]] = [[] for _ in graphs]
    random = Random(0)
    for _ in range(PASSES):
        order = random.sample(range(len(graphs)), len(graphs))
        timings = device_times([graphs[number] for number in order], device, seconds)
        for number, timing in zip(order, timings, strict=True):
            medians[number].append(timing.median_us)
    return medians


def slim(profile: Profile) -> Profile:
    """Kernel names no longer than anybody reads them."""
    return replace(
        profile,
        operators=tuple(
            replace(o, kernels=tuple(replace(k, name=k.name[:NAME_LENGTH]) for k in o.kernels))
            for o in profile.operators
        ),
    )


def _wait_for_turn() -> None:
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()
    sys.stdin.readline()


if __name__ == "__main__":
    typer.run(main)
