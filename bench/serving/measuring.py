"""One load on one running server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from bench.serving import h2load
from bench.serving.caller import TIMEOUT_S, connected
from bench.serving.checking import Codes, counted, loaded, request_codes, sampled
from bench.serving.contestants import OPARA, ROOT, Contestant
from bench.serving.payloads import Payload
from bench.serving.process import Place, ServerProcess
from bench.serving.results import Measurement

SETTLE_S = 2.0  # a server's counters may come after its answers


@dataclass(frozen=True)
class Settings:
    """``seconds``: of each measured load; ``warm_up_s``: of the same load before it; ``samples``: calls whose answers
    are looked at, before and after."""

    rounds: int = 3
    seconds: float = 3.0
    warm_up_s: float = 0.5
    samples: int = 5


@dataclass(frozen=True)
class Running:
    """A contestant that is ready. ``scratch``: a folder for request bodies and logs."""

    contestant: Contestant
    place: Place
    server: ServerProcess
    scratch: Path

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.place.port}"


def measure(
    running: Running, payload: Payload, callers: int, generator_cores: tuple[int, ...], settings: Settings
) -> Measurement:
    """A round of one cell. Raises H2LoadError and SubprocessError where a generator has no figures, OSError where our
    server does not tell its counts, and grpc.RpcError where not even one call is answered."""
    contestant, random = running.contestant, np.random.default_rng()
    message = contestant.protocol.encode(payload.name, payload.draw(np.random.default_rng(0)))
    body = running.scratch / "body.bin"
    body.write_bytes(h2load.framed(message))
    with connected(running.target, contestant.protocol.method) as call:
        answer_bytes = len(h2load.framed(call(message)))
        problems = sampled(call, contestant.protocol, payload, random, settings.samples)

        def load(seconds: float) -> tuple[h2load.Report, Path]:
            threads = len(generator_cores)
            asked = h2load.Load(running.place.port, contestant.protocol.method, body, callers, seconds, threads)
            return _run_h2load(asked, generator_cores, running.scratch / "h2load.log")

        load(settings.warm_up_s)
        codes, cpu_s = _codes(running, payload), running.server.cpu_s()
        report, log = load(settings.seconds)
        cpu_s = running.server.cpu_s() - cpu_s
        problems += loaded(report, answer_bytes, callers)
        problems += _count_problems(running, payload, codes, report.done, callers)
        problems += sampled(call, contestant.protocol, payload, random, settings.samples)
    p50_us, p99_us = np.percentile(h2load.read_latencies(log), [50, 99])
    if callers == 1:
        p50_us, p99_us = _latency_of_one(running, message, settings.seconds)
    return Measurement(
        requests_per_s=report.requests_per_s,
        p50_us=round(float(p50_us), 1),
        p99_us=round(float(p99_us), 1),
        cpu_us=round(cpu_s / max(report.done, 1) * 1e6, 1),
        problems=tuple(problems),
    )


def _run_h2load(load: h2load.Load, cores: tuple[int, ...], log: Path) -> tuple[h2load.Report, Path]:
    log.unlink(missing_ok=True)  # h2load appends
    command = h2load.command(h2load.find(), load, cores, log)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=load.seconds + 60)
    if done.returncode != 0:
        raise h2load.H2LoadError(f"h2load ended with exit status {done.returncode}: {done.stderr[-500:]}")
    return h2load.parse(done.stdout), log


def _latency_of_one(running: Running, message: bytes, seconds: float) -> tuple[float, float]:
    """p50 and p99 in µs, from a client in a process of its own, on the generator's cores as this one is."""
    path = running.scratch / "message.bin"
    path.write_bytes(message)
    command = [sys.executable, "-m", "bench.serving.caller", running.target, running.contestant.protocol.method]
    command += [str(path), f"--seconds={seconds}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=seconds + 60)
    found = json.loads(done.stdout)
    return found["p50_us"], found["p99_us"]


def _codes(running: Running, payload: Payload) -> Codes:
    """Of ours by its own count; of others nothing."""
    if running.contestant.family != OPARA:
        return {}
    with urlopen(f"http://127.0.0.1:{running.place.metrics_port}/metrics", timeout=TIMEOUT_S) as response:
        return request_codes(response.read().decode(), payload.name)


def _count_problems(running: Running, payload: Payload, before: Codes, done: int, callers: int) -> list[str]:
    if running.contestant.family != OPARA:
        return []
    deadline = time.monotonic() + SETTLE_S
    while problems := counted(before, _codes(running, payload), done, callers):
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return problems
