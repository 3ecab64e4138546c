"""nghttp2's load generator: its command line, and what it prints. Throughput of ready-made gRPC calls.

It knows HTTP/2, not gRPC: a call that failed is an HTTP 200 as well, without data. So its bytes of data tell.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HOW_TO_GET_IT = "h2load is missing: apt-get install nghttp2-client (Debian, Ubuntu), brew install nghttp2 (macOS)"
CONNECTIONS = 8  # at most, unless said otherwise; more callers share them


class H2LoadError(Exception):
    """h2load is missing, failed, or printed what is not understood."""


@dataclass(frozen=True)
class Load:
    """``callers`` requests in flight on ``port`` at all times, for ``seconds``, over as many ``connections`` at most.
    ``body``: a file with one framed message. ``threads``: of the generator."""

    port: int
    method: str
    body: Path
    callers: int
    seconds: float
    threads: int
    connections: int = CONNECTIONS


@dataclass(frozen=True)
class Report:
    """``done``: requests with an HTTP answer; ``bad``: others that ended; ``data_bytes``: of all answers' bodies."""

    requests_per_s: float
    done: int
    ok: int
    bad: int
    data_bytes: int


def framed(message: bytes) -> bytes:
    """As the body of a gRPC call: not compressed, length, message."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def find() -> str:
    """Path of the program. Raises H2LoadError."""
    path = shutil.which("h2load")
    if path is None:
        raise H2LoadError(HOW_TO_GET_IT)
    return path


def command(program: str, load: Load, cores: Iterable[int], log: Path) -> list[str]:
    """``log``: where each request's times go."""
    clients = min(load.callers, load.connections)
    if load.callers % clients:
        raise ValueError(f"{load.callers} callers do not divide into {clients} connections")
    return [
        *("taskset", "--cpu-list", ",".join(map(str, cores)), program),
        *("-D", f"{round(load.seconds * 1000)}ms", "-t", str(min(load.threads, clients))),
        *("-c", str(clients), "-m", str(load.callers // clients), "-d", str(load.body), f"--log-file={log}"),
        *("-H", "content-type: application/grpc", "-H", "te: trailers"),
        f"http://127.0.0.1:{load.port}{load.method}",
    ]


def parse(output: str) -> Report:
    """What h2load printed. Raises H2LoadError."""
    (rate,) = _numbers(r"finished in .*?, ([\d.]+) req/s", output)
    done, failed, errored, timeout = _numbers(
        r"requests: .* (\d+) done, .* (\d+) failed, (\d+) errored, (\d+) timeout", output
    )
    (ok,) = _numbers(r"status codes: (\d+) 2xx", output)
    (data,) = _numbers(r"traffic: .* \((\d+)\) data", output)
    return Report(rate, int(done), int(ok), int(failed + errored + timeout), int(data))


def read_latencies(log: Path) -> NDArray[np.float64]:
    """Microseconds of each request in h2load's log. Raises H2LoadError where there are none."""
    times = np.loadtxt(log, usecols=2, ndmin=1) if log.stat().st_size else np.empty(0)
    if not len(times):
        raise H2LoadError("no request was answered")
    return times


def _numbers(pattern: str, output: str) -> tuple[float, ...]:
    found = re.search(f"^{pattern}", output, re.MULTILINE)
    if found is None:
        raise H2LoadError(f"h2load printed no line like {pattern!r}:\n{output[-1000:]}")
    return tuple(map(float, found.groups()))
