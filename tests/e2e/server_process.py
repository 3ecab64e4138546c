"""A real opara-server process, started as a person would start it."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0
READY = re.compile(r"READY grpc=(127\.0\.0\.1:\d+) metrics=(127\.0\.0\.1:\d+)\n")


@dataclass(frozen=True)
class ServerProcess:
    """A server that is SERVING."""

    process: subprocess.Popen[str]
    grpc: str
    metrics: str

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit status, as the shell would have it."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def sample(self, line: str) -> float:
        """The value of the metric's line that begins with ``line``; 0 where there is none yet."""
        with urlopen(f"http://{self.metrics}/metrics", timeout=PATIENCE_S) as page:
            text: str = page.read().decode()
        found = [row for row in text.splitlines() if row.startswith(f"{line} ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    def wait_for(self, line: str, value: float) -> None:
        """Until the metric's ``line`` has that value; fails when it does not within PATIENCE_S."""
        end = time.monotonic() + PATIENCE_S
        while (seen := self.sample(line)) != value:
            assert time.monotonic() < end, f"{line} is {seen}, not {value}"
            time.sleep(0.01)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "opara_server.cli", *arguments]


def environment() -> dict[str, str]:
    """One thread per operator: the machine that runs the tests runs other things too."""
    paths = [*(str(ROOT / part) for part in ("server", "protos")), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=PATIENCE_S, env=environment(), cwd=cwd, check=False
    )


@contextmanager
def running(
    models: Path, *options: str, stderr: int | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Serve ``models`` on free ports; killed at the end if it still runs. ``stderr``: None: a file of its own.
    ``variables``: of its environment, beside the others."""
    log = models.parent / "server.log"
    log.touch()
    arguments = ("serve", f"--models={models}", "--port=0", "--metrics-port=0", f"--app-dir={ROOT}")
    with (
        log.open("w") if stderr is None else nullcontext(stderr) as errors,
        subprocess.Popen(
            command(*arguments, f"--cache-dir={models.parent / 'plans'}", *options),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**environment(), **(variables or {})},
            cwd=models.parent,
        ) as process,
    ):
        try:
            line = _first_line(process)
            ready = READY.fullmatch(line)
            assert ready, f"{line!r} instead of READY; the log:\n{log.read_text()}"
            yield ServerProcess(process, *ready.groups())
        finally:
            process.kill()


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=lambda out: lines.put(out.readline()), args=(process.stdout,), daemon=True).start()
    return lines.get(timeout=PATIENCE_S)
