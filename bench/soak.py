"""A million requests, each with numbers of its own: not one wrong answer, and nothing grows.

    python -m bench.soak --requests 1000000 --lanes 2

A real server with an identity model. Client processes keep requests of one to five rows in flight, as calls and on
streams; every answer must be, bit for bit, what its request carried. Meanwhile the server's memory and file descriptors
are read; at the end its counters must account for every request.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any
from urllib.request import urlopen

import grpc
import numpy as np
import typer

from bench.environment import environment
from bench.serving.contestants import ROOT
from bench.serving.process import Launch, ServerProcess, started
from bench.serving.starting import free_ports
from opara_protos.v1 import inference_pb2 as pb
from opara_protos.v1.inference_pb2_grpc import InferenceServiceStub

RESULTS = Path(__file__).resolve().parent / "results"
MODEL_TOML = """\
source = "python:bench.serving.models.modules:identity"
batch_sizes = [1, 2, 4, 8, 16, 32]
tuning_budget_s = 10.0
device = "{device}"

[[inputs]]
name = "x"
dtype = "int64"
shape = [6]
range = [-9.2e18, 9.2e18]

[batching]
lanes = {lanes}
"""
WINDOW = 48  # requests in flight, of each process, on its stream and as calls
MAX_ROWS = 5
WATCHES = 20  # of memory and descriptors
MOST_GROWN_MIB = 4.0
PATIENCE_S = 60.0
_COUNTED = re.compile(r'opara_requests_total\{(?=[^}]*code="(?P<code>\w+)")[^}]*\} (?P<count>\S+)')
_PATTERN = np.arange(MAX_ROWS * 6, dtype=np.int64).reshape(MAX_ROWS, 6) * 1_000_003


@dataclass
class Tally:
    """Of one client process. ``wrong``: answers that are not their request's; ``failed``: by status code."""

    answered: int = 0
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)


def main(
    requests: int = 1_000_000,
    lanes: int = 2,
    device: str = "cpu",
    processes: int = 2,
    options: Annotated[str, typer.Option(help="Of the server, as in a shell.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = RESULTS,
) -> None:
    """Ends with status 1 unless every answer was right, every request is accounted for, and nothing grew."""
    port, metrics_port = free_ports(2)
    with (
        tempfile.TemporaryDirectory() as scratch,
        _server(Path(scratch), port, metrics_port, device, lanes, options) as server,
    ):
        begin, watched = time.perf_counter(), []
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            share = requests // processes
            work = [(f"127.0.0.1:{port}", number * share, share) for number in range(processes)]
            pending = pool.starmap_async(ask, work)
            while not pending.ready():
                watched.append(_watch(server, metrics_port))
                pending.wait(max(0.2, (time.perf_counter() - begin) / WATCHES))
            tallies = pending.get()
        seconds = time.perf_counter() - begin
        watched.append(at_rest(lambda: _watch(server, metrics_port), watched[0]["descriptors"]))
        counted = _counted(metrics_port)
    report = {
        "environment": environment(),
        "settings": {"device": device, "lanes": lanes, "processes": processes, "options": options},
        "requests": share * processes,
        "seconds": round(seconds, 1),
        "answered": sum(tally.answered for tally in tallies),
        "wrong": sum(tally.wrong for tally in tallies),
        "failed": dict(sum((tally.failed for tally in tallies), Counter())),
        "counted by the server": counted,
        "MiB grown in the second half": grown_mib(watched),
        "descriptors at the start and the end": [watched[0]["descriptors"], watched[-1]["descriptors"]],
        "watched": watched,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"soak-{device}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({name: value for name, value in report.items() if name != "environment"}))
    right = report["answered"] == report["requests"] and not report["wrong"] and not report["failed"]
    grown = grown_mib(watched) > MOST_GROWN_MIB or watched[-1]["descriptors"] > watched[0]["descriptors"]
    if not right or grown or counted != {"OK": report["requests"]}:
        sys.exit(1)


def grown_mib(watched: Sequence[Mapping[str, float]]) -> float:
    """How much the server's memory grew in the second half of the requests: with a leak of one object per request, by
    tens of MiB in a million."""
    half = watched[-1]["requests"] / 2
    settled = next(one for one in watched if one["requests"] >= half)
    return round(watched[-1]["MiB"] - settled["MiB"], 1)


def at_rest(watch: Callable[[], dict[str, float]], descriptors: float) -> dict[str, float]:
    """What is seen once there are no more descriptors than that, or at last: connections end a little later than their
    clients."""
    end = time.monotonic() + PATIENCE_S
    while (seen := watch())["descriptors"] > descriptors and time.monotonic() < end:
        time.sleep(0.1)
    return seen


def ask(target: str, first: int, count: int) -> Tally:
    """``count`` requests from number ``first`` on, every other on a stream."""
    tally = Tally()
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = InferenceServiceStub(channel)
        streamed = threading.Thread(target=_stream, args=(stub, range(first, first + count, 2), tally))
        called = Tally()
        calls = threading.Thread(target=_call, args=(stub, range(first + 1, first + count, 2), called))
        for thread in (streamed, calls):
            thread.start()
        for thread in (streamed, calls):
            thread.join()
    return Tally(tally.answered + called.answered, tally.wrong + called.wrong, tally.failed + called.failed)


def numbers(request: int) -> np.ndarray:
    """int64 [1 to MAX_ROWS, 6], the like of which no other request has in any row."""
    return _PATTERN[: 1 + request % MAX_ROWS] + request * 7_919_000_000


def _message(request: int) -> pb.InferRequest:
    values = numbers(request)
    tensor = pb.Tensor(name="x", data_type=pb.DATA_TYPE_INT64, shape=values.shape, data=values.tobytes())
    return pb.InferRequest(model="soak", id=str(request), inputs=[tensor])


def check(request: int, answer: pb.InferResponse, tally: Tally) -> None:
    """Count an answer, and whether it is that request's."""
    tally.answered += 1
    (output,) = answer.outputs
    tally.wrong += answer.id != str(request) or output.data != numbers(request).tobytes()


def _stream(stub: InferenceServiceStub, requests: range, tally: Tally) -> None:
    slots = threading.Semaphore(WINDOW)

    def messages() -> Iterator[pb.InferStreamRequest]:
        for request in requests:
            slots.acquire()
            yield pb.InferStreamRequest(request=_message(request))

    for answer in stub.InferStream(messages()):
        slots.release()
        if answer.WhichOneof("result") == "error":
            tally.failed[str(answer.error.code)] += 1
        else:
            check(int(answer.id), answer.response, tally)


def _ended(done: SimpleQueue[tuple[int, Any]], request: int, call: Any) -> None:
    done.put((request, call))


def _call(stub: InferenceServiceStub, requests: range, tally: Tally) -> None:
    done: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    in_flight, waiting = 0, iter(requests)
    while True:
        while in_flight < WINDOW and (request := next(waiting, None)) is not None:
            future = stub.Infer.future(_message(request), timeout=60.0)
            future.add_done_callback(partial(_ended, done, request))
            in_flight += 1
        if not in_flight:
            return
        request, ended = done.get()
        in_flight -= 1
        if ended.code() is grpc.StatusCode.OK:
            check(request, ended.result(), tally)
        else:
            tally.failed[ended.code().name] += 1


@contextmanager
def _server(
    folder: Path, port: int, metrics_port: int, device: str, lanes: int, options: str
) -> Iterator[ServerProcess]:
    model = folder / "models" / "soak"
    model.mkdir(parents=True)
    (model / "model.toml").write_text(MODEL_TOML.format(device=device, lanes=lanes))
    words = [f"--models={folder / 'models'}", f"--app-dir={ROOT}", f"--port={port}", f"--metrics-port={metrics_port}"]
    words += [f"--cache-dir={folder / 'plans'}", "--log-level=warning", *options.split()]
    launch = Launch((sys.executable, "-m", "opara_server.cli", "serve", *words), ready="READY")
    with started(launch, os.sched_getaffinity(0), folder / "log") as server:
        server.wait_for_ready_line(time.monotonic() + 120)
        yield server


def _watch(server: ServerProcess, metrics_port: int) -> dict[str, float]:
    """Requests so far, and of all of the server's processes resident MiB and open file descriptors."""
    processes = [Path("/proc", str(status.pid)) for status in server.processes()]
    pages = sum(int((process / "statm").read_text().split()[1]) for process in processes)
    descriptors = sum(len(list((process / "fd").iterdir())) for process in processes)
    mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return {"requests": sum(_counted(metrics_port).values()), "MiB": round(mib, 1), "descriptors": descriptors}


def _counted(metrics_port: int) -> dict[str, int]:
    with urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as response:
        found = [(line["code"], int(float(line["count"]))) for line in _COUNTED.finditer(response.read().decode())]
    return {code: count for code, count in found if count}


if __name__ == "__main__":
    typer.run(main)
