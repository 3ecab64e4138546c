"""One server under one load that does something for a while and does without for the next, and so on: two processes of
the same program, or the same one a while later, differ by more than what is measured."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import uvloop

from bench.serving import h2load
from bench.serving.contestants import ROOT
from bench.serving.payloads import PAYLOADS
from bench.serving.process import Launch, started
from bench.serving.protocols import OparaV1
from bench.serving.starting import free_ports
from opara_server.app import Application
from opara_server.stopping import stop_on_signals

MODEL = "tiny"
MODELS = ROOT / "bench" / "serving" / "models"
START_TIMEOUT_S = 120.0
LEAST_REQUESTS = 50  # of a slice under load


class Switch(Protocol):
    """``seen``: requests, at all times."""

    on: bool

    @property
    def seen(self) -> int: ...


@dataclass(frozen=True)
class Slice:
    """``cpu_s``: of the server's process, all threads."""

    on: bool
    requests: int
    wall_s: float
    cpu_s: float


def serve_switching(application: Callable[[], tuple[Application, Switch]], slice_s: float) -> list[Slice]:
    """Until SIGTERM. ``application`` is made on the event loop."""
    seen: list[Slice] = []

    async def served() -> None:
        app, switch = application()
        stop_on_signals(app.ask_to_stop)
        async with app:
            print("READY", flush=True)
            switching = asyncio.create_task(_switch(switch, slice_s, seen))
            await app.wait()
            switching.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(served())
    return seen


async def _switch(switch: Switch, slice_s: float, seen: list[Slice]) -> None:
    while True:
        requests, wall_s, cpu_s = switch.seen, time.perf_counter(), time.process_time()
        await asyncio.sleep(slice_s)
        taken = time.perf_counter() - wall_s, time.process_time() - cpu_s
        seen.append(Slice(switch.on, switch.seen - requests, *taken))
        switch.on = not switch.on


def load(module: str, *, callers: int, cores: int, seconds: float, environment: Mapping[str, str] | None = None) -> str:
    """What ``module serve MODELS PORT METRICS_PORT CACHE_DIR OUT``, on the first ``cores``, wrote to OUT under load
    from the others."""
    ours = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder, (port, metrics_port) = Path(name), free_ports(2)
        (folder / "models").mkdir()
        (folder / "models" / MODEL).symlink_to(MODELS / MODEL)
        words = [str(folder / "models"), str(port), str(metrics_port), str(folder / "plans"), str(folder / "out")]
        body = folder / "body.bin"
        body.write_bytes(h2load.framed(OparaV1().encode(MODEL, PAYLOADS[MODEL].draw(np.random.default_rng(0)))))
        variables = {"PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})}
        launch = Launch((sys.executable, "-m", module, "serve", *words), variables, "READY")
        with started(launch, ours[:cores], folder / "log") as server:
            server.wait_for_ready_line(time.monotonic() + START_TIMEOUT_S)
            asked = h2load.Load(port, OparaV1().method, body, callers, seconds, len(ours[cores:]))
            loading = h2load.command(h2load.find(), asked, ours[cores:], folder / "h2load.log")
            subprocess.run(loading, capture_output=True, check=True)
        return (folder / "out").read_text()


def compared(slices: Sequence[Slice]) -> dict[str, object]:
    """Of neighbouring slices under load. Shares are of what there is without, each the median of pairs with its
    standard error beside."""
    pairs = [(a, b) if a.on else (b, a) for a, b in zip(slices[::2], slices[1::2], strict=False)]
    pairs = [pair for pair in pairs if min(one.requests for one in pair) >= LEAST_REQUESTS]
    lost = [1 - on.requests / on.wall_s / (off.requests / off.wall_s) for on, off in pairs]
    added = [on.cpu_s / on.requests / (off.cpu_s / off.requests) - 1 for on, off in pairs]
    return {
        "pairs of slices": len(pairs),
        "requests/s without": round(float(np.median([off.requests / off.wall_s for _, off in pairs]))),
        "throughput lost": _share(lost),
        "processor time per request added": _share(added),
    }


def _share(values: Sequence[float]) -> dict[str, float]:
    """The error is the median's own: half of what lies between the ranks that a binomial's standard deviation, half of
    the root of their number, is away from the middle. A slice in which the machine stood still is far off, and counts
    as any other."""
    rank = 0.5 / len(values) ** 0.5
    low, median, high = np.quantile(values, [0.5 - rank, 0.5, 0.5 + rank])
    return {"median": round(float(median), 4), "standard error": round(float(high - low) / 2, 4)}
