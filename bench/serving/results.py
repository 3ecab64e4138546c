"""What was measured: cells, their rounds, the medians of these, as JSON and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True, order=True)
class Cell:
    """One server under one load. ``layout``: cores of the server + cores of the generator."""

    layout: str
    payload: str
    callers: int
    server: str


@dataclass(frozen=True)
class Measurement:
    """``p50_us`` and ``p99_us``: with one caller as a gRPC client sees them, else as h2load does. ``cpu_us``: of all
    of the server's processes, per request. ``problems``: why it does not count."""

    requests_per_s: float
    p50_us: float
    p99_us: float
    cpu_us: float
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)  # hashed by identity: versions is a mapping
class Entrant:
    """A server that took part, or could not: then ``failed`` says why. ``idle_cores``: how many cores it kept busy
    while nobody called. ``restarts``: how often it was started again, since it had ended."""

    name: str
    family: str
    title: str
    processes: int
    versions: Mapping[str, str]
    idle_cores: float = 0.0
    failed: str = ""
    restarts: int = 0


@dataclass(frozen=True)
class Results:
    """``entrants``: by layout. ``rounds``: of each cell, in the order in which they were measured."""

    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    entrants: Mapping[str, Sequence[Entrant]]
    rounds: Mapping[Cell, Sequence[Measurement]]

    def median(self, cell: Cell) -> Measurement | None:
        """Of the valid rounds, each figure for itself; None where no more than half of all rounds are valid."""
        rounds = self.rounds.get(cell, ())
        valid = [one for one in rounds if not one.problems]
        if 2 * len(valid) <= len(rounds):
            return None
        return Measurement(
            requests_per_s=median(one.requests_per_s for one in valid),
            p50_us=median(one.p50_us for one in valid),
            p99_us=median(one.p99_us for one in valid),
            cpu_us=median(one.cpu_us for one in valid),
        )

    def problems(self) -> list[str]:
        """Each with its cell and how often it came, of rounds that do not count."""
        return [
            f"{cell.server}, {cell.payload}, {cell.callers} callers, {cell.layout}: {problem}"
            for cell, rounds in sorted(self.rounds.items())
            for problem in dict.fromkeys(problem for one in rounds for problem in one.problems)
        ]


def save(results: Results, path: Path) -> None:
    cells = [
        asdict(cell) | {"rounds": [asdict(one) for one in rounds]} for cell, rounds in sorted(results.rounds.items())
    ]
    report = {
        "environment": results.environment,
        "settings": results.settings,
        "entrants": {layout: [asdict(one) for one in entrants] for layout, entrants in results.entrants.items()},
        "cells": cells,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def load(path: Path) -> Results:
    """Raises OSError, ValueError, KeyError and TypeError where there is no such file, or it is none of ours."""
    report = json.loads(path.read_text())
    return Results(
        report["environment"],
        report["settings"],
        {layout: [Entrant(**one) for one in entrants] for layout, entrants in report["entrants"].items()},
        dict(_cell(item) for item in report["cells"]),
    )


def _cell(item: dict[str, Any]) -> tuple[Cell, list[Measurement]]:
    rounds: Iterable[dict[str, Any]] = item.pop("rounds")
    return Cell(**item), [Measurement(**one | {"problems": tuple(one["problems"])}) for one in rounds]
