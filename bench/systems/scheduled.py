"""Operators on several streams: the paper's method and those it compares with, on ATen operators; and this engine."""

from __future__ import annotations

from collections.abc import Callable

from bench.background import Background
from bench.subject import Subject
from bench.systems.system import Capture, Prepared
from opara_server.engine.build import compile_model
from opara_server.engine.capture import capture as capture_schedule
from opara_server.engine.compiled import CompiledModel, Progress
from opara_server.engine.device import open_device
from opara_server.engine.options import BuildOptions
from opara_server.engine.policies import make_schedule
from opara_server.engine.schedule import fold


def published(policy: str) -> Callable[[Subject], Capture]:
    """``policy`` on ATen operators, without any choice by measurement."""

    def start(subject: Subject) -> Capture:
        _ = subject.operators  # made while nothing has to be idle

        def capture() -> Prepared:
            program, profile = subject.aten.program, subject.aten.profile
            schedule = make_schedule(program.graph, profile, policy)
            device = open_device(subject.device.kind)  # of its own: graphs of one device share their memory
            graph = capture_schedule(program, schedule, device)
            return Prepared(
                graph,
                streams=fold(program.graph, schedule, device.max_streams).streams,
                policy=policy,
                lowering=program.lowering,
                longest_path_us=program.graph.longest_path(profile.durations),
                peak_bytes=graph.peak_bytes,
                arena=graph.arena,
                detail=f"{schedule.synchronisations} synchronisations",
                trace=graph.trace,
            )

        return capture

    return start


def ours(subject: Subject) -> Background[Prepared]:
    return Background(lambda progress: _prepared(compiled(subject, progress), subject.key.batch))


def compiled(subject: Subject, progress: Progress) -> CompiledModel:
    bench, key = subject.bench, subject.key
    options = BuildOptions(
        batch_sizes=(key.batch,),
        channels_last=bench.channels_last,
        tuning_budget_s=subject.tuning_budget_s,
    )
    inputs = bench.inputs(key.dtype)
    return compile_model(key.model, subject.module, inputs, subject.device.kind, options, progress)


def _prepared(model: CompiledModel, batch: int) -> Prepared:
    plan, graph = model.plan.bucket(batch), model.graph(batch)
    return Prepared(
        graph,
        streams=plan.streams,
        policy=plan.policy,
        lowering=plan.lowering,
        longest_path_us=plan.longest_path_us,
        candidates=plan.candidates,
        peak_bytes=graph.peak_bytes,
        arena=graph.arena,
        detail=model.plan.fallback_reason,
        trace=graph.trace,
    )
