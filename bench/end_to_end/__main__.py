"""Measures from a client's call to its answer: ours, what bounds it, and servers as one would write them.

    python -m bench.end_to_end                                          a GPU, some minutes
    python -m bench.end_to_end --device cpu --workload deepfm:float32:1 what needs none

Each workload has its servers at once, on the same device; loads go to one at a time, in turns. Results go to
``end_to_end.json`` and ``end_to_end.md``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.end_to_end.loads import Crowd, LoadError, Target, answers, one_caller, open_loop, saturated, worst_error
from bench.end_to_end.servers import EAGER, Server, network, servers
from bench.end_to_end.tables import report
from bench.end_to_end.workloads import METHOD, WORKLOADS, Workload, make_repository
from bench.environment import environment
from bench.models import require_packages
from bench.serving import h2load
from bench.serving.caller import connected
from bench.serving.contestants import ROOT
from bench.serving.process import Place, ServerError, ServerProcess, started
from bench.serving.starting import free_ports

RESULTS = Path(__file__).resolve().parents[1] / "results"
SAMPLES = 5  # answers that are compared
SHARES = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the saturation, in the open loop
Found = dict[str, Any]


def main(
    workload: Annotated[list[str] | None, typer.Option(help="model:dtype:rows; again for more.")] = None,
    ours: Annotated[list[str] | None, typer.Option(help="Options of our server; again for another set.")] = None,
    device: str = "cuda",
    lanes: Annotated[list[int] | None, typer.Option(help="Of ours; again for more. Default: its own choice.")] = None,
    callers: Annotated[int, typer.Option(help="In flight at saturation; a multiple of the connections.")] = 128,
    connections: Annotated[int, typer.Option(help="At saturation: several for each process of a server.")] = 64,
    generator_cores: Annotated[int | None, typer.Option(help="Of the load's. Default: half of all.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="Of each load.")] = 3.0,
    tuning_budget_s: float = 120.0,
    start_timeout_s: float = 400.0,
    cache: Annotated[Path, typer.Option(help="Of plans.")] = Path(".opara-cache/end_to_end"),
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Start the servers of each workload, measure them in turns, write a table."""
    try:
        h2load.find()
        chosen = [_parsed(text) for text in workload] if workload else list(WORKLOADS)
    except (h2load.H2LoadError, ValueError) as error:
        sys.exit(str(error))
    require_packages(one.model for one in chosen)
    cores = sorted(os.sched_getaffinity(0))
    own = len(cores) - (len(cores) // 2 if generator_cores is None else generator_cores)
    split = cores[:own], tuple(cores[own:])
    if not all(split):
        sys.exit(f"of {len(cores)} cores the server and the load generator need one each at least")
    found: Found = {
        "environment": environment(),
        "settings": {
            "rounds": rounds,
            "seconds": seconds,
            "callers": callers,
            "connections": connections,
            "lanes": lanes or "default",
            "tuning_budget_s": tuning_budget_s,
        },
        "cores": {"server": own, "generator": len(cores) - own},
        "workloads": {},
    }
    counts: Sequence[int | None] = lanes or [None]
    everyone = servers(ours or [""], counts)
    for one in chosen:
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
            for count in {None, *counts}:
                make_repository(_models(Path(scratch), count), one, device, tuning_budget_s, count)
            folders = Path(scratch), cache.absolute()
            ready = _started(everyone, one, *folders, *split, start_timeout_s, stack)
            bounds = [network(_answer_bytes(ready, one), processes) for processes in sorted({1, max(1, own // 2)})]
            ready |= _started(bounds, one, *folders, *split, start_timeout_s, stack)
            found["workloads"][one.name] = _measured(one, ready, Crowd(callers, connections), rounds, seconds)
            found["workloads"][one.name]["bare"] = _bare(one, *folders, split[0], seconds)
        out.mkdir(parents=True, exist_ok=True)
        (out / "end_to_end.json").write_text(json.dumps(found, indent=1) + "\n")
        (out / "end_to_end.md").write_text(report(found))


def _models(scratch: Path, lanes: int | None) -> Path:
    return scratch / f"models-{lanes or 'default'}"


def _parsed(text: str) -> Workload:
    model, _, rest = text.partition(":")
    dtype, _, rows = rest.partition(":")
    return Workload(model, dtype, int(rows))


def _started(
    everyone: Sequence[Server],
    workload: Workload,
    scratch: Path,
    cache: Path,
    cores: Sequence[int],
    generator: tuple[int, ...],
    timeout_s: float,
    stack: ExitStack,
) -> dict[str, tuple[Server, Target]]:
    """By title, one after the other: they share the device while they search and compile. Who cannot start is told of;
    without one of ours nothing is measured."""
    ready = {}
    for server in everyone:
        port, http_port, metrics_port = free_ports(3)
        place = Place(port, http_port, metrics_port, scratch / str(port))
        place.folder.mkdir()
        launch = server.launch(place, _models(scratch, server.lanes), cache, workload)
        process: ServerProcess = stack.enter_context(started(launch, cores, place.folder / "log"))
        try:
            process.wait_for_ready_line(time.monotonic() + timeout_s)
        except ServerError as error:
            if server.ours:  # there would be nothing to compare
                sys.exit(f"{server.title} does not start: {error}")
            _tell(f"{server.title} does not take part: {error}")
            continue
        told = metrics_port if server.ours else 0
        ready[server.title] = server, Target(port, told, generator, place.folder, process.processes)
    return ready


def _answer_bytes(ready: dict[str, tuple[Server, Target]], workload: Workload) -> int:
    _, target = next(iter(ready.values()))
    with connected(target.address, METHOD) as call:
        return len(call(workload.request(0)))


def _measured(
    workload: Workload, ready: dict[str, tuple[Server, Target]], crowd: Crowd, rounds: int, seconds: float
) -> Found:
    sampled = {t: answers(target, workload, SAMPLES) for t, (server, target) in ready.items() if server.computes}
    eager = sampled.get(EAGER)
    errors = {title: worst_error(found, eager) if eager else None for title, found in sampled.items()}
    latency: Found = {title: [] for title in ready}
    rates: Found = {title: [] for title in ready}
    for turn in range(rounds):
        for title, (_, target) in ready.items():
            try:
                latency[title].append(one_caller(target, workload, seconds))
                rates[title].append(saturated(target, workload, crowd, seconds))
            except LoadError as error:
                _tell(f"{title}, {workload.name}: {error}")
                continue
            _tell(f"{turn + 1}/{rounds} {workload.name}, {title}: {latency[title][-1]}, {rates[title][-1]}")
    curves: Found = {}
    for title, (server, target) in ready.items():
        if server.ours and rates[title]:
            most = statistics.median(one["requests_per_s"] for one in rates[title])
            offered = [share * most for share in SHARES]
            curves[title] = open_loop(target, workload, offered, crowd.connections, seconds)
            _tell(f"{workload.name}, {title}: {curves[title]}")
    return {"error": errors, "one caller": latency, "saturated": rates, "open loop": curves}


def _bare(workload: Workload, scratch: Path, cache: Path, cores: Sequence[int], seconds: float) -> Found:
    """By ``bench.end_to_end.bare``, on the server's cores, while the servers idle."""
    module = [sys.executable, "-m", "bench.end_to_end.bare", str(_models(scratch, None)), str(cache), workload.model]
    command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *module]
    command += [f"--rows={workload.rows}", f"--seconds={seconds}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    bare: Found = json.loads(done.stdout.splitlines()[-1])
    _tell(f"{workload.name}, bare: {bare}")
    return bare


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
