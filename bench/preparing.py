"""Getting systems ready, in two steps: compiled, several cell groups at once; captured, alone on the GPU."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from bench.background import Background
from bench.interruption import OutOfTimeError, interrupted_at
from bench.subject import Subject
from bench.systems import NotRunnableError, Prepared, System
from bench.systems.runners import held_memory
from bench.systems.system import Capture
from opara_server.engine.errors import first_line

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Compiled:
    """What is left to do for a system, and what it took so far: wall time, and bytes it keeps."""

    system: System
    capture: Capture
    seconds: float
    held_bytes: int


@dataclass(frozen=True)
class Ready:
    """A system that can run, and what it took."""

    system: System
    prepared: Prepared
    seconds: float
    held_bytes: int


def compile_all(
    subject: Subject, systems: Iterable[System], failed: dict[str, str], until: float | None = None
) -> dict[str, Compiled]:
    """By name, in the order given. Those that cannot are in ``failed`` afterwards, with the reason: the others go on.
    Those that have not compiled by ``until`` (on time.time()) are in neither, nor are those that they broke."""
    wanted = list(systems)
    begun: list[System] = []
    compiled: dict[str, Compiled] = {}
    behind: dict[str, Background[Prepared]] = {}
    with suppress(OutOfTimeError), interrupted_at(until):
        for system in sorted(wanted, key=lambda system: system.order):
            held, begin = _held(subject), time.perf_counter()
            begun.append(system)
            started = _tried(system.name, failed, lambda: system.start(subject))  # noqa: B023 - is called at once
            if started is None:
                continue
            if isinstance(started, Background):
                behind[system.name] = started
            capture = started.finish if isinstance(started, Background) else started
            seconds = time.perf_counter() - begin
            compiled[system.name] = Compiled(system, capture, seconds, _held(subject) - held)
    for name, background in behind.items():
        own_seconds = background.compiled(None if until is None else max(0.0, until - time.time()))
        if own_seconds is None:
            background.abandon()
            del compiled[name]
        else:
            compiled[name] = replace(compiled[name], seconds=own_seconds)
    if any(system.in_a_tree and system.name not in compiled for system in begun):
        compiled = {name: one for name, one in compiled.items() if not one.system.in_a_tree}
    late = [system.name for system in wanted if system.name not in {*compiled, *failed}]
    if late:
        log.warning("not compiled in time, or broken by one that was not: %s", ", ".join(late))
    return {system.name: compiled[system.name] for system in wanted if system.name in compiled}


def capture_all(subject: Subject, compiled: Mapping[str, Compiled], failed: dict[str, str]) -> dict[str, Ready]:
    """By name; ``failed`` as for ``compile_all``."""
    ready = {}
    for name, one in compiled.items():
        held, begin = _held(subject), time.perf_counter()
        prepared = _tried(name, failed, one.capture)
        if prepared is not None:
            seconds = one.seconds + time.perf_counter() - begin
            ready[name] = Ready(one.system, prepared, seconds, one.held_bytes + _held(subject) - held)
    return ready


def _tried(name: str, failed: dict[str, str], work: Callable[[], T]) -> T | None:
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - compilers raise anything
        text = first_line(error)
        failed[name] = text if isinstance(error, NotRunnableError) else f"{type(error).__name__}: {text}"[:300]
        return None


def _held(subject: Subject) -> int:
    return held_memory() if subject.on_cuda else 0
