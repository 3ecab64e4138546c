"""One cell group, measured in a process of its own: a crash or a leak loses nothing else.

    python -m bench.cell googlenet float16 1 --systems sequential,ours --folder DIR

Compiles, prints a line READY and waits for one on standard input before anything is timed: so several processes may
compile side by side and then measure one after the other. ``bench.engine`` is who starts it.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import launch_order
from bench.cells import Cell, CellKey, SystemResult, save_cell
from bench.child import READY
from bench.counters import Counters, Load
from bench.environment import environment
from bench.models import find_model
from bench.reference import REPLAYS, Reference, Verdict, reference, replays_for
from bench.subject import Subject, opened_subject, settings, weights_bytes
from bench.systems import SYSTEMS, NotRunnableError, Prepared, System
from bench.systems.runners import held_memory
from bench.systems.system import Capture
from bench.timing import Timing, back_to_back, device_times, host_times
from opara_server.engine.errors import first_line
from opara_server.engine.trace import occupancy

log = logging.getLogger(__name__)

OURS = "ours"
TRACED = ("opara", OURS)
TRACED_REPLAYS = 3

Timings = tuple[Timing, Timing]  # by the device's clock, by the host's


@dataclass(frozen=True)
class Ready:
    """A system that can run, and what it took: wall time, and bytes it keeps."""

    system: System
    prepared: Prepared
    seconds: float
    held_bytes: int


def main(
    model: str,
    dtype: str,
    batch: int,
    systems: Annotated[str, typer.Option(help="Names, separated by commas.")],
    folder: Annotated[Path, typer.Option(help="Where the result goes.")],
    device: str = "cuda",
    seconds: Annotated[float, typer.Option(help="Of timing, per system.")] = 0.3,
    counter_seconds: Annotated[float, typer.Option(help="Of reading the SM counters, per system.")] = 0.2,
    studies: Annotated[bool, typer.Option(help="Also launch orders and stream timelines.")] = False,
) -> None:
    key = CellKey(model, dtype, batch)
    chosen = [SYSTEMS[name] for name in SYSTEMS if name in systems.split(",")]
    with opened_subject(key, find_model(model), device, seconds) as subject:
        save_cell(folder, measure(subject, chosen, counter_seconds, studies))


def measure(subject: Subject, systems: list[System], counter_seconds: float, with_studies: bool) -> Cell:
    begin = time.perf_counter()
    cold = _cache_is_cold()
    failed: dict[str, str] = {}
    started = _started(subject, systems, failed)
    compiled = time.perf_counter()
    _wait_for_turn()
    alone = time.perf_counter()
    early = _captured(subject, {name: one for name, one in started.items() if SYSTEMS[name].host_driven}, failed)
    # Before anything is profiled: a profiler slows the CPU's launches for as long as the process lives.
    undisturbed = _timed(subject, early)
    right = reference(subject)
    ready = early | _captured(subject, {name: one for name, one in started.items() if name not in early}, failed)
    captured = time.perf_counter()
    results = _results(subject, ready, undisturbed, right, counter_seconds)
    measured = time.perf_counter()
    studies = _studies(subject, ready) if with_studies else {}
    done = time.perf_counter()
    tried = {system.name for system in systems}
    return Cell(
        key=subject.key,
        environment=environment() | {"device": subject.device.kind},
        settings=settings(subject) | {"reference": right.source},
        systems={
            name: results[name] if name in results else SystemResult(failed=failed[name])
            for name in SYSTEMS
            if name in tried
        },
        graph=_graph(subject),
        studies=studies,
        seconds={
            "compile": compiled - begin,
            "alone": done - alone,
            "capture": captured - alone,
            "measure": measured - captured,
            "studies": done - measured,
        },
        cache="cold" if cold else "warm",
    )


def _started(subject: Subject, systems: list[System], failed: dict[str, str]) -> dict[str, tuple[Capture, float, int]]:
    """Per system what is left to do, the wall time and the memory of what was done."""
    started = {}
    for system in systems:
        before, begin = _held(subject), time.perf_counter()
        try:
            capture = system.start(subject)
        except Exception as error:  # noqa: BLE001 - compilers raise anything; the other systems go on
            failed[system.name] = _reason(error)
            continue
        started[system.name] = (capture, time.perf_counter() - begin, _held(subject) - before)
    return started


def _captured(
    subject: Subject, started: Mapping[str, tuple[Capture, float, int]], failed: dict[str, str]
) -> dict[str, Ready]:
    ready = {}
    for name, (capture, seconds, held) in started.items():
        before, begin = _held(subject), time.perf_counter()
        try:
            prepared = capture()
        except Exception as error:  # noqa: BLE001
            failed[name] = _reason(error)
            continue
        took = seconds + time.perf_counter() - begin
        ready[name] = Ready(SYSTEMS[name], prepared, took, held + _held(subject) - before)
    return ready


def _timed(subject: Subject, ready: Mapping[str, Ready]) -> dict[str, Timings]:
    """By the device's clock and by the host's."""
    runners = [one.prepared.runner for one in ready.values()]
    if not runners:
        return {}
    by_device = device_times(runners, subject.device, subject.seconds)
    by_host = host_times(runners, subject.device, subject.seconds / 3)
    return dict(zip(ready, zip(by_device, by_host, strict=True), strict=True))


def _results(
    subject: Subject,
    ready: Mapping[str, Ready],
    undisturbed: Mapping[str, Timings],
    right: Reference,
    counter_seconds: float,
) -> dict[str, SystemResult]:
    timed = _timed(subject, ready)
    times = {name: _better(timed[name], undisturbed.get(name)) for name in ready}
    loads = _loads(subject, {name: (one, times[name][0]) for name, one in ready.items()}, counter_seconds)
    results = {}
    for name, one in ready.items():  # last, because it overwrites inputs and outputs
        replays = REPLAYS[-1] if name == OURS else replays_for(times[name][0].median_us)
        verdict = right.judge(one.prepared.runner, replays)
        results[name] = _result(subject, one, times[name], loads.get(name), verdict)
    return results


def _result(subject: Subject, one: Ready, times: Timings, load: Load | None, verdict: Verdict) -> SystemResult:
    on_device, on_host = times
    prepared = one.prepared
    return SystemResult(
        median_us=on_device.median_us,
        spread=on_device.spread,
        host_us=on_host.median_us,
        longest_path_us=prepared.longest_path_us,
        sm_utilisation=load.sm_utilisation if load else None,
        sm_occupancy=load.sm_occupancy if load else None,
        peak_bytes=prepared.peak_bytes,
        held_bytes=one.held_bytes if subject.on_cuda else None,
        tuning_seconds=one.seconds,
        streams=prepared.streams,
        policy=prepared.policy,
        lowering=prepared.lowering,
        error=verdict.error,
        verified=verdict.verified,
        detail="; ".join(part for part in (prepared.detail, verdict.detail) if part),
    )


def _better(now: Timings, before: Timings | None) -> Timings:
    """A system that was timed before anything was profiled and again afterwards has the better of its two."""
    if before is None:
        return now
    device, host = (min(pair, key=lambda timing: timing.median_us) for pair in zip(now, before, strict=True))
    return device, host


def _loads(subject: Subject, timed: Mapping[str, tuple[Ready, Timing]], seconds: float) -> dict[str, Load]:
    """Empty where there are no counters."""
    if not subject.on_cuda or not seconds:
        return {}
    try:
        counters = Counters()
    except RuntimeError as error:
        log.warning("%s", error)
        return {}
    return {
        name: counters.over(partial(back_to_back, one.prepared.runner, subject.device, seconds, timing.median_us))
        for name, (one, timing) in timed.items()
    }


def _studies(subject: Subject, ready: Mapping[str, Ready]) -> dict[str, Any]:
    studies: dict[str, Any] = {"launch_order": launch_order.study(subject), "timelines": {}}
    for name in TRACED:
        trace = ready[name].prepared.trace if name in ready else None
        if trace is None:
            continue
        seen = trace(TRACED_REPLAYS)
        busy = occupancy(seen)
        studies["timelines"][name] = {
            "concurrency": busy.concurrency,
            "busy_us": {str(count): round(us, 1) for count, us in busy.busy_us.items()},
            "intervals": [[i.stream, round(i.start_us, 1), round(i.end_us, 1)] for i in seen.replays[-1]],
        }
    return studies


def _graph(subject: Subject) -> dict[str, float]:
    try:
        lowered = subject.aten
    except Exception:  # noqa: BLE001 - a module without operators is a fact that its systems tell
        return {"weights_bytes": weights_bytes(subject.module)}
    graph, profile = lowered.program.graph, lowered.profile
    return {
        "operators": len(graph),
        "kernels": sum(len(operator.kernels) for operator in profile.operators),
        "width": graph.width,
        "depth": graph.depth,
        "longest_path_us": graph.longest_path(profile.durations),
        "sum_us": sum(profile.durations),
        "lower_seconds": lowered.lower_seconds,
        "profile_seconds": lowered.profile_seconds,
        "weights_bytes": weights_bytes(subject.module),
    }


def _held(subject: Subject) -> int:
    return held_memory() if subject.on_cuda else 0


def _reason(error: BaseException) -> str:
    text = first_line(error)
    return text if isinstance(error, NotRunnableError) else f"{type(error).__name__}: {text}"[:300]


def _cache_is_cold() -> bool:
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))
    return not (folder.is_dir() and any(folder.iterdir()))


def _wait_for_turn() -> None:
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()
    sys.stdin.readline()


if __name__ == "__main__":
    typer.run(main)
