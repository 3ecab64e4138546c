"""``python -m bench.observing``: the dashboards of two servers of the example under load, drawn for docs/."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from bench.observing.drawing import Window, draw
from bench.observing.panels import NAMES
from bench.observing.prometheus import missing_tools, monitoring
from bench.observing.traffic import traffic
from examples.serving import Server, running_server

DOCS = Path(__file__).resolve().parents[2] / "docs" / "dashboards"
MODEL = "digits"
PHASES = ((2, 0.01), (8, 0.0), (2, 0.01))  # of load: callers on the first server, and the pause after each answer


def main(
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = DOCS,
    phase_s: Annotated[float, typer.Option(help="Seconds of each phase of load.")] = 15.0,
) -> None:
    if missing := missing_tools():
        raise SystemExit(f"needs {', '.join(missing)} (on Debian: apt-get install prometheus prometheus-alertmanager)")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [stack.enter_context(running_server()) for _ in range(2)]
        seen = stack.enter_context(monitoring(folder, [server.metrics for server in servers]))
        window = _loaded(servers, phase_s)
        out.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            draw(name, seen, window, out / f"{name}.png")


def _loaded(servers: list[Server], phase_s: float) -> Window:
    begin = time.time()
    first, second = servers
    for callers, pause_s in PHASES:
        with traffic(first.grpc, [MODEL], callers, pause_s), traffic(second.grpc, [MODEL], 2, 0.01):
            time.sleep(phase_s)
    return Window(begin, time.time(), "5s")


if __name__ == "__main__":
    typer.run(main)
