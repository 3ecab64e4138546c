"""Where a large tensor lies on its way through a server, and what a request leaves behind: python -m bench.copies

A real server, as a person starts it, on a CPU; one caller asks for one row of 602,112 bytes at a time, whose answer is
its negative. After a request its server's memory is looked through for the tensor and for the answer: each place where
they are is one that somebody copied, or computed, them to. Then thousands of requests: what each process holds more
afterwards.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import typer

from bench.copies.marking import Floats, marked, places
from bench.copies.page import Found, Left, Process, report
from bench.environment import environment
from bench.serving.caller import CHANNEL_OPTIONS, Call
from bench.serving.contestants import ROOT
from bench.serving.process import Launch, ServerProcess, started
from bench.serving.protocols import Echo, OparaV1, OpenInference, WireProtocol
from bench.serving.starting import free_ports

RESULTS = Path(__file__).resolve().parents[1] / "results"
PROBE = Path(__file__).resolve().parent / "probe"
MODEL = "negated"
NUMBERS = 3 * 224 * 224
MODEL_TOML = f"""\
source = "python:bench.copies.negated:Negated"
batch_sizes = [1]
policy = "sequential"
device = "cpu"

[[inputs]]
name = "x"
dtype = "float32"
shape = [{NUMBERS}]
"""
PATIENCE_S = 120.0
CHILD = "opara_server.workers.child"
WARM_UP = 200
LOOKS = 5  # requests whose memory is looked through, before all others and after them


@dataclass(frozen=True)
class Way:
    """``start``: from a folder, a port and the metrics' port to a server's launch. ``negates``: else it echoes."""

    title: str
    protocol: WireProtocol
    start: Callable[[Path, int, int], Launch]
    negates: bool = True


def main(
    requests: Annotated[int, typer.Option(help="Whose remains are counted, after as many before them.")] = 20_000,
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = RESULTS,
) -> None:
    """Look at gRPC alone, at one process and at one with a worker, asked by both protocols."""
    found = [look(way, requests) for way in WAYS]
    machine = environment()
    told = {"environment": machine, "tensor, bytes": 4 * NUMBERS, "found": [asdict(one) for one in found]}
    out.mkdir(parents=True, exist_ok=True)
    (out / "copies.json").write_text(json.dumps(told, indent=1) + "\n")
    (out / "copies.md").write_text(report(found, machine, 4 * NUMBERS, 2 * LOOKS))


def look(way: Way, requests: int) -> Found:
    """Raises grpc.RpcError where a call fails, ValueError where an answer is wrong."""
    random, protocol = np.random.default_rng(), way.protocol
    with (
        tempfile.TemporaryDirectory() as scratch,
        _server(way, Path(scratch)) as (server, target),
        _connected(target, protocol.method) as call,
    ):

        def ask() -> Floats:
            tensor = marked(NUMBERS, random)
            answer = protocol.decode(call(protocol.encode(MODEL, tensor[None])))
            if not np.array_equal(answer, -tensor[None] if way.negates else tensor[None]):
                raise ValueError("a wrong answer")
            return tensor

        for _ in range(WARM_UP):
            ask()
        pids = _pids(server)
        looked = [_looked(pids, ask()) for _ in range(LOOKS)]
        left = _left(pids, ask, requests)
        looked += [_looked(pids, ask()) for _ in range(LOOKS)]
    processes = tuple(_process(role, [one[role] for one in looked], left[role]) for role in pids)
    return Found(way.title, protocol.name, requests, processes)


def _process(role: str, looked: Sequence[Sequence[float]], left: Left) -> Process:
    request, answer, shared_request, shared_answer = map(max, zip(*looked, strict=True))
    return Process(role, request, answer, shared_request, shared_answer, left)


def _looked(pids: Mapping[str, int], tensor: Floats) -> dict[str, tuple[float, float, float, float]]:
    """By role; see Process."""
    seen = {role: (places(pid, tensor), places(pid, -tensor)) for role, pid in pids.items()}
    return {role: (given.own, told.own, given.shared, told.shared) for role, (given, told) in seen.items()}


def _left(pids: Mapping[str, int], ask: Callable[[], Floats], requests: int) -> dict[str, Left]:
    before = {}
    for _ in range(2):  # the first half is for what is made once
        before = {role: _held(pid) for role, pid in pids.items()}
        for _ in range(requests // 2):
            ask()
    after = {role: _held(pid) for role, pid in pids.items()}
    each = {
        role: {name: (after[role][name] - before[role][name]) / (requests // 2) for name in after[role]}
        for role in pids
    }
    return {
        role: Left(
            blocks=round(one["blocks"], 4),
            malloc_bytes=round(one["malloc_bytes"], 2),
            page_faults=round(one["page_faults"], 3),
            in_cycles=round(1000 * one["in_cycles"], 2),
            collections=round(1000 * one["collections"], 2),
        )
        for role, one in each.items()
    }


def _held(pid: int) -> dict[str, float]:
    """What the process says of itself, once it has collected its garbage, and the kernel of it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        asking.bind(f"\0opara-asks-{os.getpid()}-{pid}")
        asking.settimeout(PATIENCE_S)
        asking.sendto(b"?", f"\0opara-probe-{pid}")
        told: dict[str, float] = json.loads(asking.recv(1 << 16))
    faults = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[7]
    return told | {"page_faults": float(faults)}


def _pids(server: ServerProcess) -> dict[str, int]:
    """Of the processes that have to do with requests, by role."""
    found = {}
    for status in server.processes():
        words = Path(f"/proc/{status.pid}/cmdline").read_text().split("\0")
        if CHILD in words:
            found[words[words.index(CHILD) + 1]] = status.pid
    return found or {"server": max(server.processes(), key=lambda status: status.cpu_s).pid}


@contextmanager
def _connected(target: str, method: str) -> Iterator[Call]:
    with grpc.insecure_channel(target, CHANNEL_OPTIONS) as channel:
        stub = channel.unary_unary(method, request_serializer=None, response_deserializer=None)
        yield lambda message: bytes(stub(message, timeout=PATIENCE_S, wait_for_ready=True))


@contextmanager
def _server(way: Way, folder: Path) -> Iterator[tuple[ServerProcess, str]]:
    """And its address."""
    port, metrics_port = free_ports(2)
    launch = way.start(folder, port, metrics_port)
    paths = os.pathsep.join((str(PROBE), *filter(None, sys.path)))
    with started(replace(launch, environment={"PYTHONPATH": paths}), os.sched_getaffinity(0), folder / "log") as server:
        server.wait_for_ready_line(time.monotonic() + PATIENCE_S)
        yield server, f"127.0.0.1:{port}"


def _ours(workers: int, folder: Path, port: int, metrics_port: int) -> Launch:
    model = folder / "models" / MODEL
    model.mkdir(parents=True)
    (model / "model.toml").write_text(MODEL_TOML)
    words = [f"--models={folder / 'models'}", f"--app-dir={ROOT}", f"--port={port}", f"--metrics-port={metrics_port}"]
    words += [f"--cache-dir={folder / 'plans'}", "--log-level=warning", f"--workers={workers}"]
    return Launch((sys.executable, "-m", "opara_server.cli", "serve", *words), ready="READY")


def _echo(_folder: Path, port: int, _metrics_port: int) -> Launch:
    return Launch((sys.executable, "-m", "bench.serving.echo", f"127.0.0.1:{port}", "--processes=1"), ready="READY")


WAYS = (
    Way("gRPC alone", Echo(), _echo, negates=False),
    *(
        Way(title, protocol, partial(_ours, workers))
        for title, workers in (("one process", 0), ("one worker", 1))
        for protocol in (OparaV1(), OpenInference())
    ),
)


if __name__ == "__main__":
    typer.run(main)
