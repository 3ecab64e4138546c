"""All servers of a layout at once, and every load on each of them in turns."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import grpc

from bench.serving.contestants import ECHO, OPARA, Contestant
from bench.serving.h2load import H2LoadError
from bench.serving.keeping import Keeper, Tell
from bench.serving.measuring import Running, Settings, measure
from bench.serving.payloads import PAYLOADS, Payload
from bench.serving.peering import MissingPeerError
from bench.serving.process import ServerError
from bench.serving.results import Cell, Entrant, Measurement
from bench.serving.starting import start, wait_until_right

IDLE_S = 2.0
Rounds = dict[Cell, list[Measurement]]


@dataclass(frozen=True)
class Layout:
    """Cores for every server and, beside them, for the generator; the payloads that are measured on them, and the
    families (none: all)."""

    server_cores: tuple[int, ...]
    generator_cores: tuple[int, ...]
    payloads: tuple[str, ...] = tuple(PAYLOADS)
    families: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{len(self.server_cores)}+{len(self.generator_cores)}"

    def restricted(self, payloads: Collection[str]) -> Layout:
        """The same with fewer payloads. Raises ValueError on one that is unknown."""
        if unknown := set(payloads) - set(PAYLOADS):
            raise ValueError(f"no payload called {', '.join(sorted(unknown))}: there are {', '.join(PAYLOADS)}")
        return replace(self, payloads=tuple(name for name in self.payloads if name in payloads))


def layouts(cores: Sequence[int]) -> tuple[Layout, ...]:
    """Of the first four of ``cores``. Raises ValueError where there are fewer."""
    if len(cores) < 4:
        raise ValueError(f"four cores are needed, two for a server and two for the generator; here are {len(cores)}")
    first, second, third, fourth = sorted(cores)[:4]
    return (
        Layout((first, second), (third, fourth)),
        Layout((first, second, third), (fourth,), ("mlp",), (OPARA, ECHO, "triton")),
    )


def run(
    layout: Layout, everyone: Sequence[Contestant], callers: Sequence[int], settings: Settings, folder: Path, tell: Tell
) -> tuple[list[Entrant], Rounds]:
    """Start them, measure them in turns, stop them. Who cannot take part is told of; the others are measured."""
    members = [one for one in everyone if not layout.families or one.family in layout.families]
    loads = list(product([PAYLOADS[name] for name in layout.payloads], callers))
    rounds: Rounds = {}
    os.sched_setaffinity(0, layout.generator_cores)  # children inherit it; servers get cores of their own
    with ExitStack() as stack:
        keeper = Keeper(layout.server_cores, folder / f"{layout.name}-again", stack, tell)
        ready, entrants = _start_all(layout, members, folder, stack, tell)
        stack.callback(_terminate, ready)  # all at once, before the stack waits for one after the other
        for turn, (payload, count) in product(range(settings.rounds), loads):
            for number in _rotated(len(ready), turn):
                name = ready[number].contestant.name
                try:
                    ready[number] = keeper.standing(ready[number])
                    found = _measured(ready[number], payload, count, layout, settings)
                except ServerError as error:
                    found = _without_figures(str(error))
                rounds.setdefault(Cell(layout.name, payload.name, count, name), []).append(found)
                tell(f"{turn + 1}/{settings.rounds} {layout.name} {payload.name} ×{count} {name}: {_line(found)}")
    return [replace(one, restarts=keeper.restarts[one.name]) for one in entrants], rounds


def _start_all(
    layout: Layout, members: Sequence[Contestant], folder: Path, stack: ExitStack, tell: Tell
) -> tuple[list[Running], list[Entrant]]:
    """All at once, since most of the time goes into their imports. ``stack`` stops them."""
    starting: list[Running] = []
    failed: dict[str, str] = {}
    for number, one in enumerate(members):
        try:
            starting.append(start(one, layout.server_cores, folder / f"{layout.name}-{number}", stack))
        except (MissingPeerError, OSError) as error:
            failed[one.name] = str(error)
    ready = []
    for running in starting:
        try:
            wait_until_right(running)
            ready.append(running)
        except ServerError as error:
            failed[running.contestant.name] = str(error)
    for name, why in failed.items():
        tell(f"{name} does not take part: {why}")
    idle = _idle_cores(ready)
    return ready, [
        Entrant(
            *(one.name, one.family, one.title, one.processes),
            versions=one.versions() if one.name not in failed else {},
            idle_cores=idle.get(one.name, 0.0),
            failed=failed.get(one.name, ""),
        )
        for one in members
    ]


def _terminate(ready: Sequence[Running]) -> None:
    for running in ready:
        running.server.terminate()


def _idle_cores(ready: Sequence[Running]) -> dict[str, float]:
    before = [running.server.cpu_s() for running in ready]
    time.sleep(IDLE_S)
    return {
        running.contestant.name: round((running.server.cpu_s() - cpu_s) / IDLE_S, 3)
        for running, cpu_s in zip(ready, before, strict=True)
    }


def _measured(running: Running, payload: Payload, count: int, layout: Layout, settings: Settings) -> Measurement:
    """A round that does not count where no figures were to be had."""
    try:
        return measure(running, payload, count, layout.generator_cores, settings)
    except grpc.RpcError as error:
        problem = f"a call failed: {error.code().name}: {error.details()}"
    except (H2LoadError, OSError, subprocess.SubprocessError) as error:
        problem = str(error)
    status = running.server.exit_status()
    return _without_figures(problem if status is None else f"the server ended with exit status {status}: {problem}")


def _without_figures(problem: str) -> Measurement:
    return Measurement(0.0, 0.0, 0.0, 0.0, (problem,))


def _rotated(count: int, turn: int) -> list[int]:
    """Nobody always comes after the same one."""
    return [(turn + number) % count for number in range(count)]


def _line(found: Measurement) -> str:
    if found.problems:
        return f"does not count: {found.problems[0]}"
    latency = f"p50 {found.p50_us:,.0f} µs, p99 {found.p99_us:,.0f} µs"
    return f"{found.requests_per_s:,.0f}/s, {latency}, CPU {found.cpu_us:,.0f} µs"
