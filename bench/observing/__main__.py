"""``python -m bench.observing``: the dashboards, drawn for docs/: of two servers of the example under load, and that of
GPUs of what was recorded on one."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from bench.observing.drawing import Window, draw
from bench.observing.exposition import EVERY_S, RECORDED, load, replaying
from bench.observing.panels import NAMES
from bench.observing.prometheus import Monitoring, missing_tools, monitoring
from bench.observing.traffic import traffic
from examples.serving import Server, running_server

DOCS = Path(__file__).resolve().parents[2] / "docs" / "dashboards"
MODEL = "digits"
GPU = "gpu"
PHASES = ((2, 0.01), (8, 0.0), (2, 0.01))  # of load: callers on the first server, and the pause after each answer


def main(
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = DOCS,
    phase_s: Annotated[float, typer.Option(help="Seconds of each phase of load.")] = 15.0,
) -> None:
    if missing := missing_tools():
        raise SystemExit(f"needs {', '.join(missing)} (on Debian: apt-get install prometheus prometheus-alertmanager)")
    out.mkdir(parents=True, exist_ok=True)
    _draw_recorded(out)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [stack.enter_context(running_server()) for _ in range(2)]
        seen = stack.enter_context(monitoring(folder, [server.metrics for server in servers]))
        window = _loaded(servers, seen, phase_s)
        for name in NAMES:
            if name != GPU:
                draw(name, seen, window, out / f"{name}.png")


def _draw_recorded(out: Path) -> None:
    """The dashboard of GPUs: RECORDED, scraped as often as it was read."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        seen = stack.enter_context(monitoring(folder, [stack.enter_context(replaying(RECORDED))]))
        begin = _first_scraped(seen, 1)
        time.sleep(len(load(RECORDED)) * EVERY_S)
        draw(GPU, seen, Window(begin, time.time(), "5s"), out / f"{GPU}.png")


def _first_scraped(seen: Monitoring, targets: int) -> float:
    """When all of them had been, in seconds since the epoch: Prometheus takes its time to begin."""
    while len(seen.query("opara_build_info")) < targets:
        time.sleep(0.1)
    return time.time()


def _loaded(servers: list[Server], seen: Monitoring, phase_s: float) -> Window:
    begin = _first_scraped(seen, len(servers))
    first, second = servers
    for callers, pause_s in PHASES:
        with traffic(first.grpc, [MODEL], callers, pause_s), traffic(second.grpc, [MODEL], 2, 0.01):
            time.sleep(phase_s)
    return Window(begin, time.time(), "5s")


if __name__ == "__main__":
    typer.run(main)
