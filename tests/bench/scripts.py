"""Jobs that run a few lines of Python instead of a benchmark."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from bench.cells import CellKey
from bench.child import Job

SCRIPTED = CellKey("some", "float32", 1)


@dataclass(frozen=True)
class Script(Job):
    code: str = ""

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.code]


def script(folder: Path, code: str) -> Script:
    """Nothing is read or written but in ``folder``."""
    return Script(SCRIPTED, (), "cpu", folder, folder / "cache", 1.0, 1.0, 1.0, False, 1, "", None, (), code)
