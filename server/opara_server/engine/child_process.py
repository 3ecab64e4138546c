"""A child process that says a JSON object a line, and what one has to mind about it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from opara_server.engine.errors import TuningError

PATIENCE_S = 5.0


class Child:
    """``python -m module folder``, with this process's paths. What it logs to stderr goes where this process's does."""

    def __init__(self, module: str, folder: Path) -> None:
        """Raises OSError."""
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # to be killed with the compilers that it starts
        )
        self._said: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def tell(self, line: str) -> None:
        """Raises TuningError where it does not listen any more."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError as error:
            raise TuningError("the search ended before its time") from error

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """What it says next; None where it says nothing for so long. Raises TuningError once it has ended."""
        try:
            line = self._said.get(timeout=seconds)
        except queue.Empty:
            return None
        if line is None:
            raise TuningError(f"the search ended with exit code {self._process.wait()}")
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise TuningError(f"the search said {line[:80]!r}") from error
        return said

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def forget(self) -> None:
        """After ``kill``: wait for its end and close the pipes."""
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(OSError):  # what was still to be written
            self._process.stdin.close()
        self._reader.join(PATIENCE_S)  # a process that left the session may hold the other end

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                self._said.put(line)
        self._said.put(None)
