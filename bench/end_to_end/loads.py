"""Loads on a server that is ready: one caller, as many as it takes, and an open loop."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from bench.end_to_end.workloads import METHOD, Workload
from bench.serving import h2load
from bench.serving.caller import TIMEOUT_S, connected
from bench.serving.checking import counted, loaded, request_codes
from bench.serving.contestants import ROOT
from bench.serving.processes import Status
from opara_client.perf_opara import OparaProtocol
from opara_client.tensors import Array

_CLIENT = "import sys; from opara_client.cli import main; sys.exit(main())"
_LOG = "h2load.log"
_REPLAYED = re.compile(r"opara_replay_seconds_sum\{.*\} (?P<seconds>\S+)")


class LoadError(Exception):
    """A load whose figures do not count; str() says why."""


@dataclass(frozen=True)
class Target:
    """``metrics_port``: 0 of a server that has none. ``cores``: the generator's. ``scratch``: a folder. ``processes``:
    of the server, as they are at the time."""

    port: int
    metrics_port: int
    cores: tuple[int, ...]
    scratch: Path
    processes: Callable[[], Sequence[Status]]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Crowd:
    """Who keeps a server saturated: ``callers`` requests in flight at all times, over ``connections``. A server of
    several processes has each connection in one of them: there should be several for each."""

    callers: int
    connections: int


def answers(target: Target, workload: Workload, count: int) -> list[list[Array]]:
    """To as many requests, each with other inputs, the same for every server."""
    with connected(target.address, METHOD) as call:
        return [list(OparaProtocol().decode(call(workload.request(seed))).values()) for seed in range(1, count + 1)]


def worst_error(found: Sequence[Sequence[Array]], expected: Sequence[Sequence[Array]]) -> float:
    """The largest ||found - expected|| / ||expected|| of any output of any answer; infinite where one is missing."""
    pairs = [pair for one, other in zip(found, expected, strict=True) for pair in zip(one, other, strict=True)]
    return max((_error(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs), default=math.inf)


def _error(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected)) / max(float(np.linalg.norm(expected)), 1e-30)


def one_caller(target: Target, workload: Workload, seconds: float) -> dict[str, float]:
    """µs, as a synchronous client in a process of its own sees them, and as h2load does, which is quicker about what is
    a client's own part."""
    message = target.scratch / "message.bin"
    message.write_bytes(workload.request(0))
    command = [sys.executable, "-m", "bench.serving.caller", target.address, METHOD, str(message)]
    found = json.loads(_run([*command, f"--seconds={seconds}"], target.cores, seconds))
    _h2load(target, workload, Crowd(1, 1), seconds)
    p50_us = float(np.median(h2load.read_latencies(target.scratch / _LOG)))
    return {name: found[name] for name in ("p50_us", "p99_us")} | {"h2load_p50_us": p50_us}


def saturated(target: Target, workload: Workload, crowd: Crowd, seconds: float) -> dict[str, float]:
    """Requests and rows a second, and how many cores that kept busy, of all processes and of the busiest; of ours also
    how long the device was idle, as a share of the time in replays."""
    before, used, begin = _exposition(target), _cpu_s(target), time.perf_counter()
    report = _h2load(target, workload, crowd, seconds)
    cores = [
        (cpu_s - used.get(process, 0.0)) / (time.perf_counter() - begin) for process, cpu_s in _cpu_s(target).items()
    ]
    after = _exposition(target)
    replayed = _replayed_s(after) - _replayed_s(before)
    if target.metrics_port:
        earlier, later = (request_codes(page, workload.model) for page in (before, after))
        if problems := counted(earlier, later, report.done, crowd.callers):
            raise LoadError("; ".join(problems))
    rows = report.requests_per_s * workload.rows
    found = {"requests_per_s": round(report.requests_per_s, 1), "rows_per_s": round(rows, 1)}
    found |= {"cores": round(sum(cores), 2), "cores_of_busiest": round(max(cores), 2)}
    return found | ({"idle_over_replay": round(seconds / replayed - 1, 4)} if replayed else {})


def _h2load(target: Target, workload: Workload, crowd: Crowd, seconds: float) -> h2load.Report:
    """Its times are in the log. Raises LoadError where answers are not what one is."""
    message = workload.request(0)
    body, log = target.scratch / "body.bin", target.scratch / _LOG
    body.write_bytes(h2load.framed(message))
    log.unlink(missing_ok=True)
    with connected(target.address, METHOD) as call:
        answer_bytes = len(h2load.framed(call(message)))
    asked = h2load.Load(target.port, METHOD, body, crowd.callers, seconds, len(target.cores), crowd.connections)
    report = h2load.parse(_run(h2load.command(h2load.find(), asked, target.cores, log), target.cores, seconds))
    if problems := loaded(report, answer_bytes, crowd.callers):
        raise LoadError("; ".join(problems))
    return report


def open_loop(
    target: Target, workload: Workload, rates: Sequence[float], connections: int, seconds: float
) -> list[dict[str, float]]:
    """Per rate of Poisson requests over about so many connections, latency in µs from when each was due."""
    processes = max(1, len(target.cores) // 2)
    command = [sys.executable, "-c", _CLIENT, "perf", workload.model, f"--target={target.address}", "--json"]
    command += [f"--rows={workload.rows}", f"--rate={','.join(f'{rate:.1f}' for rate in rates)}"]
    command += [f"--processes={processes}", f"--connections={max(1, connections // processes)}"]
    command += [f"--duration={seconds}", "--warm-up=0.5"]
    report = json.loads(_run(command, target.cores, (seconds + 1) * len(rates)))
    return [
        {
            "rate": run["rate"],
            "answers_per_s": round(run["answers_per_s"], 1),
            "p50_us": round(run["latency_us"]["percentiles"]["p50"], 1),
            "p99_us": round(run["latency_us"]["percentiles"]["p99"], 1),
            "failed": sum(run["failed"].values()),
            "held": run["held"],
            "generator_busy": round(run["generator"]["loop_busy"], 3),
        }
        for run in report["runs"]
    ]


def _run(command: Sequence[str], cores: Sequence[int], seconds: float) -> str:
    """What it prints. Raises LoadError where it fails."""
    bound = command if command[0] == "taskset" else ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
    done = subprocess.run(bound, capture_output=True, text=True, check=False, cwd=ROOT, timeout=seconds * 2 + 60)
    if done.returncode != 0:
        raise LoadError(f"{command[1:4]} ended with exit status {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def _cpu_s(target: Target) -> dict[tuple[int, int], float]:
    """By process."""
    return {process.identity: process.cpu_s for process in target.processes()}


def _exposition(target: Target) -> str:
    """A server's metrics; of one that has none nothing."""
    if not target.metrics_port:
        return ""
    with urlopen(f"http://127.0.0.1:{target.metrics_port}/metrics", timeout=TIMEOUT_S) as response:
        found: str = response.read().decode()
        return found


def _replayed_s(exposition: str) -> float:
    """Seconds in replays so far."""
    return sum(float(found["seconds"]) for found in _REPLAYED.finditer(exposition))
