"""The process that measures one cell group, as seen from outside. No torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

from bench.cells import CellKey

ROOT = Path(__file__).resolve().parents[1]
READY = "ready to measure"  # the line by which the process says so
LATE = 75  # its exit status where there was no time to get there: EX_TEMPFAIL of sysexits.h

MANY_THREADS = 4  # for a compiler: most of them wait most of the time


@dataclass(frozen=True)
class Job:
    """What one process is to do. ``cache``: where Inductor keeps what it compiles for this cell group; ``threads``: how
    many processors it may take while it compiles; ``gpu``: the one it sees, as CUDA_VISIBLE_DEVICES names it, empty for
    whatever this process sees; ``compile_until``: on time.time(), what is late by then is left out; ``processors``:
    those it may use at all (none given: those of this process)."""

    cell: CellKey
    systems: tuple[str, ...]
    device: str
    folder: Path
    cache: Path
    seconds: float
    counter_seconds: float
    tuning_budget_s: float
    studies: bool
    threads: int
    gpu: str
    compile_until: float | None
    processors: tuple[int, ...] = ()

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "bench.cell", self.cell.model, self.cell.dtype, str(self.cell.batch)),
            *("--systems", ",".join(self.systems), "--device", self.device, "--folder", str(self.folder.absolute())),
            *("--seconds", str(self.seconds), "--counter-seconds", str(self.counter_seconds)),
            *("--tuning-budget-s", str(self.tuning_budget_s)),
            *(("--compile-until", str(self.compile_until)) if self.compile_until is not None else ()),
            *(("--studies",) if self.studies else ()),
        ]

    def environment(self) -> dict[str, str]:
        own = {
            "TORCHINDUCTOR_CACHE_DIR": str(self.cache),
            "TORCHINDUCTOR_COMPILE_THREADS": str(max(self.threads, MANY_THREADS)),
            "OMP_NUM_THREADS": str(self.threads),
        }
        return os.environ | own | ({"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu else {})


class Child:
    """Runs a job. Its log is a file."""

    def __init__(self, job: Job, log: Path) -> None:
        self.job = job
        self.timed_out = False
        self._timer: Timer | None = None
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as sink:
            self._process = subprocess.Popen(
                job.command(),
                cwd=ROOT,
                env=job.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                start_new_session=True,  # so that compilers it started can be ended with it
            )
        if job.processors:  # whatever it starts inherits them
            os.sched_setaffinity(self._process.pid, job.processors)

    def limit(self, seconds: float | None) -> None:
        """Killed with all its own processes once these are over (None: never); no earlier limit counts any more."""
        if self._timer:
            self._timer.cancel()
        self._timer = Timer(max(seconds, 0.0), self._time_out) if seconds is not None else None
        if self._timer:
            self._timer.daemon = True
            self._timer.start()

    def wait_until_ready(self) -> bool:
        """Whether the process has compiled and waits for its turn; False where it has ended instead."""
        assert self._process.stdout
        return any(line.strip() == READY for line in iter(self._process.stdout.readline, ""))

    def measure(self) -> str:
        """Let the process go on, to its end. Returns why it failed; empty where it did not."""
        with suppress(BrokenPipeError):
            self._process.communicate("go\n")
        return self._failure()

    def cut_off(self) -> None:
        """End it as at its limit, from another thread than the one that waits for it."""
        self._time_out()

    def close(self) -> None:
        """End the process and whatever it started, if anything of it is left."""
        self.limit(None)
        self._kill()
        self._process.communicate()

    def _failure(self) -> str:
        if self.timed_out:
            return "cut off: out of time"
        status = self._process.wait()
        self.timed_out = status == LATE
        if status == 0:
            return ""
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"{how}: {lines[-1][:300]}" if lines else how

    def _time_out(self) -> None:
        self.timed_out = True
        self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
