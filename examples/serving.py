"""A server of the example's models as a child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # where `examples`, the model's source, can be imported from
MODELS = ROOT / "examples" / "models"
STOP_TIMEOUT_S = 30.0


class ServerError(Exception):
    """The server ended before it was ready, or not with exit status 0; str() ends with what it wrote last, where
    that was not shown."""


@dataclass(frozen=True)
class Server:
    """A server that is SERVING: ``grpc`` and ``metrics`` are ``host:port``."""

    grpc: str
    metrics: str


@contextmanager
def running_server(models: Path = MODELS) -> Iterator[Server]:
    """Start a server on free ports, wait until it is ready; at the end stop it as an operator would, with SIGTERM.

    On a terminal the server's own progress bar shows what it is doing, and its warnings; elsewhere nothing does.

    Raises ServerError when it does not get ready or does not end with exit status 0.
    """
    with tempfile.TemporaryDirectory() as plans, tempfile.TemporaryFile("w+") as log:
        options = [f"--models={models}", f"--app-dir={ROOT}", "--port=0", "--metrics-port=0", f"--cache-dir={plans}"]
        shown = sys.stderr.isatty()
        options += ["--log-level=warning"] if shown else []
        command = [sys.executable, "-m", "opara_server.cli", "serve", *options]
        errors = sys.stderr if shown else log
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment()) as process:
            try:
                server = _ready(process)
                if server is not None:
                    yield server
            finally:
                process.send_signal(signal.SIGTERM)
                status = _wait(process)
        if server is None or status != 0:
            log.seek(0)
            when = "before it was ready" if server is None else "when it was stopped"
            wrote = log.read()[-2000:]
            last = f"; it wrote last:\n{wrote}" if wrote else ""  # on a terminal that is there already
            raise ServerError(f"the server ended with exit status {status} {when}{last}")


def _environment() -> dict[str, str]:
    """Ours, and half of the processors for the model's operators: the client needs some too.

    More threads than idle processors would be worse than few: OpenMP's spin while they wait for each other.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    return {"OMP_NUM_THREADS": str(threads), **os.environ}


def _ready(process: subprocess.Popen[str]) -> Server | None:
    """Wait for the line ``READY grpc=HOST:PORT metrics=HOST:PORT``; None when the server ends without it."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("READY "):
            addresses = dict(pair.split("=", 1) for pair in line.split()[1:])
            return Server(addresses["grpc"], addresses["metrics"])
    return None


def _wait(process: subprocess.Popen[str]) -> int:
    try:
        return process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
