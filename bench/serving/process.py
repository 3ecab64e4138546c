"""A server as a child process: on some cores only, its log in a file, and nothing of it left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.serving.processes import Status, all_processes, tree

STOP_TIMEOUT_S = 15.0

# Of every server. glibc otherwise gives large buffers back to the kernel and faults them in again for every request;
# the MLP is so small that threads of OpenMP would only wait for each other.
COMMON = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "OMP_NUM_THREADS": "1",
}


class ServerError(Exception):
    """A server that did not get ready, ended by itself or could not be stopped; str() says what it wrote last."""


@dataclass(frozen=True)
class Launch:
    """``environment`` is added to ours. ``ready``: how the line starts that the server writes once its ports are open;
    empty where it writes none."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: str = ""


@dataclass(frozen=True)
class Place:
    """Where a server is to be: ``port`` for gRPC, others as it needs them, and ``folder``, an empty one of its own."""

    port: int
    http_port: int
    metrics_port: int
    folder: Path


class ServerProcess:
    """One that runs, in a session of its own. ``log``: the file with all that it writes."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, ready: str) -> None:
        self._process = process
        self._log = log
        self._ready = ready
        self._told = False

    def cpu_s(self) -> float:
        """CPU time that all of its processes took so far, user and system."""
        return sum(status.cpu_s for status in self.processes())

    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def wait_for_ready_line(self, deadline: float) -> None:
        """Where it writes one. Raises ServerError as check does."""
        while self._ready and not any(line.startswith(self._ready) for line in self._written().splitlines()):
            self.check(deadline)
            time.sleep(0.05)

    def check(self, deadline: float) -> None:
        """Raises ServerError where the server has ended, or ``deadline`` (monotonic) has come."""
        status = self._process.poll()
        if status is not None or time.monotonic() > deadline:
            what = "is not ready in time" if status is None else f"ended with exit status {status}"
            raise ServerError(f"the server {what}; it wrote last:\n{self._written()[-1000:]}")

    def terminate(self) -> None:
        """Tell it to stop, and do not wait. Once: most servers take a second SIGTERM for "at once" and leave things."""
        if not self._told:
            self._told = True
            self._process.terminate()

    def stop(self) -> None:
        """SIGTERM to the server, SIGKILL to what is left of it. Raises ServerError where even then something runs."""
        known = self.processes()
        self.terminate()
        for status in self._wait(known):
            with suppress(ProcessLookupError):
                os.kill(status.pid, signal.SIGKILL)
        if left := self._wait(known):
            raise ServerError(f"processes that could not be stopped: {[status.pid for status in left]}")
        self._process.wait()

    def _written(self) -> str:
        return self._log.read_text(errors="replace")

    def _wait(self, known: Iterable[Status]) -> list[Status]:
        """What still runs once STOP_TIMEOUT_S are over."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while (left := self._left(known)) and time.monotonic() < deadline:
            self._process.poll()
            time.sleep(0.05)
        return left

    def processes(self) -> list[Status]:
        return tree(self._process.pid, all_processes())

    def _left(self, known: Iterable[Status]) -> list[Status]:
        """Its processes that run, those included that no longer descend from it."""
        identities = {status.identity for status in known}
        everything = all_processes()
        mine = {status.identity for status in tree(self._process.pid, everything)} | identities
        return [status for status in everything if status.identity in mine and status.state != "Z"]


@contextmanager
def started(launch: Launch, cores: Iterable[int], log: Path) -> Iterator[ServerProcess]:
    """Start it on ``cores`` and no others; at the end it is stopped, whatever happened."""
    command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *launch.argv]
    environment = os.environ | COMMON | dict(launch.environment)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=log.parent,
            start_new_session=True,
        )
    server = ServerProcess(process, log, launch.ready)
    try:
        yield server
    finally:
        server.stop()
