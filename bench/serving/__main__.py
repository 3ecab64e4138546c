"""Measures the request path beside other servers, all in turns.

    python -m bench.serving                                             all servers, all loads: half an hour
    python -m bench.serving --only opara --only echo --payload tiny     a few
    python -m bench.serving --ours "" --ours "--transport aio"          our server with these sets of options
    python -m bench.serving --protocol oip --only opara                 our server, asked as the peers are

Results go to ``serving.json`` and ``serving.md``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.environment import environment
from bench.serving import h2load, results, tables
from bench.serving.contestants import OURS, ROOT, contestants
from bench.serving.measuring import Settings
from bench.serving.payloads import PAYLOADS
from bench.serving.process import COMMON
from bench.serving.protocols import OparaV1
from bench.serving.results import Entrant, Results
from bench.serving.running import Rounds, layouts, run

RESULTS = Path(__file__).resolve().parents[1] / "results"
CALLERS = (1, 8, 32)


def main(
    ours: Annotated[list[str] | None, typer.Option(help="Options of our server; again for another set.")] = None,
    protocol: Annotated[list[str] | None, typer.Option(help="Of ours: opara.v1 or oip. Default: opara.v1.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Names of servers. Default: all.")] = None,
    payload: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PAYLOADS)}. Default: all.")] = None,
    callers: Annotated[list[int] | None, typer.Option(help="Requests in flight. Default: 1, 8 and 32.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = Settings.rounds,
    seconds: Annotated[float, typer.Option(help="Of each measured load.")] = Settings.seconds,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Start all servers, measure them in turns, write a table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped then, too
    settings = Settings(rounds=rounds, seconds=seconds)
    try:
        h2load.find()
        everyone = contestants(ours or OURS, protocol or (OparaV1.name,), only or ())
        chosen = [layout.restricted(payload or list(PAYLOADS)) for layout in layouts(sorted(os.sched_getaffinity(0)))]
    except (h2load.H2LoadError, ValueError) as error:
        sys.exit(str(error))
    told = _environment()
    entrants: dict[str, list[Entrant]] = {}
    measured: Rounds = {}
    with tempfile.TemporaryDirectory() as scratch:
        for layout in chosen:
            if not layout.payloads:
                continue
            entrants[layout.name], found = run(layout, everyone, callers or CALLERS, settings, Path(scratch), _tell)
            measured |= found
            write(Results(told, _told(settings), entrants, measured), out)


def write(found: Results, folder: Path) -> None:
    """``serving.json`` and the table made of it."""
    results.save(found, folder / "serving.json")
    (folder / "serving.md").write_text(tables.report(found))


def _environment() -> dict[str, Any]:
    """The machine's, the load generator's, and how busy the machine was: other work makes all figures worse."""
    version = subprocess.run([h2load.find(), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    load = round(os.getloadavg()[0], 2)
    return environment() | {
        "server sources": _sources_digest(),
        "h2load": version.rpartition("/")[2],
        "load average before": load,
    }


def _sources_digest() -> str:
    digest = sha256()
    for path in sorted((ROOT / "server").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _told(settings: Settings) -> dict[str, Any]:
    common = " ".join(f"{name}={value}" for name, value in COMMON.items())
    return {"rounds": settings.rounds, "seconds per load": settings.seconds, "environment of all servers": common}


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
