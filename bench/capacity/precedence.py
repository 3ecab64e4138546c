"""Servers, proxy and load generator before all other work of the machine, where the system lets them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.serving.processes import all_processes, tree

PRIORITY = 5


@contextmanager
def precedence() -> Iterator[bool]:
    """This process, all that it started and what it starts meanwhile run as soon as they can, as on an idle machine;
    False where that is not allowed."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    except PermissionError:
        yield False
        return
    try:
        _schedule(os.SCHED_RR, PRIORITY)
        yield True
    finally:
        _schedule(os.SCHED_OTHER, 0)


def _schedule(policy: int, priority: int) -> None:
    """All threads of this process and of those that it started."""
    for process in tree(os.getpid(), all_processes()):
        with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))
