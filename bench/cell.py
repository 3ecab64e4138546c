"""One cell group, measured in a process of its own: a crash or a leak loses nothing else.

    python -m bench.cell googlenet float16 1 --systems sequential,ours --folder DIR

Compiles, prints a line READY and waits for one on standard input before anything is timed: so several processes may
compile side by side and then measure one after the other. ``bench.engine`` is who starts it. Exit status LATE: this
engine had not compiled in time, and nothing was measured.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import launch_order
from bench.assessing import OURS, Timings, assess, time_all
from bench.cells import Cell, CellKey, SystemResult, save_cell
from bench.child import LATE, READY
from bench.environment import environment
from bench.models import find_model
from bench.preparing import Ready, capture_all, compile_all
from bench.reference import reference
from bench.selection import TUNING_BUDGET_S
from bench.subject import Subject, opened_subject, settings, weights_bytes
from bench.systems import SYSTEMS, System
from bench.systems.compiled import forget
from bench.tables import SEQUENTIAL
from opara_server.engine.trace import occupancy

TRACED = ("opara", "ours")
TRACED_REPLAYS = 3


def main(
    model: str,
    dtype: str,
    batch: int,
    systems: Annotated[str, typer.Option(help="Names, separated by commas.")],
    folder: Annotated[Path, typer.Option(help="Where the result goes.")],
    device: str = "cuda",
    seconds: Annotated[float, typer.Option(help="Of timing, per system.")] = 0.3,
    counter_seconds: Annotated[float, typer.Option(help="Of reading the SM counters, per system.")] = 0.2,
    tuning_budget_s: Annotated[float, typer.Option(help="Of this engine.")] = TUNING_BUDGET_S,
    compile_until: Annotated[float | None, typer.Option(help="Seconds since 1970: do without what is late.")] = None,
    studies: Annotated[bool, typer.Option("--studies", help="Also launch orders and stream timelines.")] = False,
) -> None:
    """Measure one model at one dtype and batch size."""
    key = CellKey(model, dtype, batch)
    asked = set(systems.split(","))
    with opened_subject(key, find_model(model), device, seconds, tuning_budget_s) as subject:
        chosen = [system for name, system in SYSTEMS.items() if name in asked]
        save_cell(folder, measure(subject, chosen, counter_seconds, compile_until, studies))


def measure(
    subject: Subject,
    systems: Sequence[System],
    counter_seconds: float,
    compile_until: float | None,
    with_studies: bool,
) -> Cell:
    """Every system, each at the time when nothing else disturbs it.

    What the host drives is timed and judged first, in turns with the graphs that there are by then, before any profiler
    is attached: one that stays (an older Kineto) slows launches. The graphs, this engine's among them, are timed in
    turns after that. What the host drives has the host's time alone, the graphs have both. ``drift``: what the
    sequential graph takes then over what it took at first.
    """
    begin = time.perf_counter()
    cold = _cache_is_cold()
    failed: dict[str, str] = {}
    compiled = compile_all(subject, systems, failed, compile_until)
    if any(system.name == OURS and system.name not in {*compiled, *failed} for system in systems):
        sys.exit(LATE)
    right = reference(subject)
    waiting = time.perf_counter()
    _wait_for_turn()
    alone = time.perf_counter()
    early = capture_all(subject, {name: one for name, one in compiled.items() if one.system.early}, failed)
    early_times = time_all(subject, early)
    driven = [one for one in early.values() if one.system.host_driven]
    results = assess(subject, driven, early_times, right, counter_seconds)
    graphs = {name: one for name, one in early.items() if not one.system.host_driven}
    if subject.on_cuda:
        forget()
    driven_done = time.perf_counter()
    graphs |= capture_all(subject, {name: one for name, one in compiled.items() if not one.system.early}, failed)
    captured = time.perf_counter()
    times = time_all(subject, graphs)
    results |= assess(subject, graphs.values(), times, right, counter_seconds)
    measured = time.perf_counter()
    studies = _studies(subject, graphs) if with_studies else {}
    done = time.perf_counter()
    results |= {name: SystemResult(failed=reason) for name, reason in failed.items()}
    return Cell(
        key=subject.key,
        environment=environment() | {"device": subject.device.kind},
        settings=settings(subject) | {"reference": right.source, "drift": _drift(early_times, times)},
        systems={name: results[name] for name in SYSTEMS if name in results},
        graph=_graph(subject),
        studies=studies,
        seconds={
            "compile": waiting - begin,
            "alone": done - alone,
            "host driven": driven_done - alone,
            "capture": captured - driven_done,
            "measure": measured - captured,
            "studies": done - measured,
        },
        cache="cold" if cold else "warm",
    )


def _drift(once: Mapping[str, Timings], again: Mapping[str, Timings]) -> float | None:
    if SEQUENTIAL not in once or SEQUENTIAL not in again:
        return None
    return again[SEQUENTIAL].counts.median_us / once[SEQUENTIAL].counts.median_us


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


def _cache_is_cold() -> bool:
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))
    return not (folder.is_dir() and any(folder.iterdir()))


def _wait_for_turn() -> None:
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()
    sys.stdin.readline()


if __name__ == "__main__":
    typer.run(main)
