"""Getting systems ready, in two steps: compiled, several cell groups at once; captured, alone on the machine."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bench.subject import Subject
from bench.systems import NotRunnableError, Prepared, System
from bench.systems.runners import held_memory
from bench.systems.system import Capture
from opara_server.engine.errors import first_line


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


def compile_all(subject: Subject, systems: Iterable[System], failed: dict[str, str]) -> dict[str, Compiled]:
    """By name. Those that cannot are in ``failed`` afterwards, with the reason: the others go on."""
    compiled = {}
    for system in systems:
        held, begin = _held(subject), time.perf_counter()
        try:
            capture = system.start(subject)
        except Exception as error:  # noqa: BLE001 - compilers raise anything
            failed[system.name] = _reason(error)
            continue
        seconds = time.perf_counter() - begin
        compiled[system.name] = Compiled(system, capture, seconds, _held(subject) - held)
    return compiled


def capture_all(subject: Subject, compiled: Mapping[str, Compiled], failed: dict[str, str]) -> dict[str, Ready]:
    """By name; ``failed`` as for ``compile_all``."""
    ready = {}
    for name, one in compiled.items():
        held, begin = _held(subject), time.perf_counter()
        try:
            prepared = one.capture()
        except Exception as error:  # noqa: BLE001
            failed[name] = _reason(error)
            continue
        seconds = one.seconds + time.perf_counter() - begin
        ready[name] = Ready(one.system, prepared, seconds, one.held_bytes + _held(subject) - held)
    return ready


def _held(subject: Subject) -> int:
    return held_memory() if subject.on_cuda else 0


def _reason(error: BaseException) -> str:
    text = first_line(error)
    return text if isinstance(error, NotRunnableError) else f"{type(error).__name__}: {text}"[:300]
