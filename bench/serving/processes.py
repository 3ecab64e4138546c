"""Processes, as /proc tells of them: who belongs to a server, and how much CPU time they took."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Status:
    """One process. ``started``: in ticks since the machine's start; with ``pid`` it tells one from a later one."""

    pid: int
    state: str
    parent: int
    session: int
    cpu_s: float
    started: int

    @property
    def identity(self) -> tuple[int, int]:
        return self.pid, self.started


def parse_status(line: str) -> Status:
    """Of /proc/PID/stat (proc(5)); the second field, the name, may hold blanks and brackets."""
    pid, _, rest = line.partition(" (")
    fields = rest.rpartition(") ")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return Status(int(pid), fields[0], int(fields[1]), int(fields[3]), ticks * _TICK_S, int(fields[19]))


def tree(leader: int, processes: Sequence[Status]) -> list[Status]:
    """What shares the session of ``leader`` and all that descends from it; what has ended and waits to be seen, not."""
    members = {process.pid for process in processes if leader in (process.pid, process.session)}
    while more := {process.pid for process in processes if process.parent in members} - members:
        members |= more
    return [process for process in processes if process.pid in members and process.state != "Z"]


def all_processes() -> list[Status]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            found.append(parse_status(path.read_text()))
    return found
