"""What metrics cost of the throughput at saturation: python -m bench.metrics_cost measure

One server under one load counts for a twentieth of a second and does not for the next, and so on. The clock is read all
the same: it also decides what is batched. What a scrape costs is measured beside.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from prometheus_client import generate_latest

from bench.environment import environment
from bench.switched import MODEL, Slice, compared, load, serve_switching
from opara_server.app import Application
from opara_server.config import ServerConfig
from opara_server.engine.plan import Plan
from opara_server.observe.metrics import Metrics
from opara_server.observe.model_metrics import ModelMetrics

RESULTS = Path(__file__).resolve().parent / "results"
SLICE_S = 0.05
SCRAPES = 20
SCRAPE_EVERY_S = 5.0  # as deploy/prometheus/prometheus.yml has it
app = typer.Typer(add_completion=False)


class SwitchedMetrics(Metrics):
    """Counts what becomes of requests only while it is ``on``. ``seen``: requests of batches, at all times."""

    seen = 0
    _on = True

    @property
    def on(self) -> bool:
        return self._on

    @on.setter
    def on(self, on: bool) -> None:
        """What is called for each request is the server's own, or does nothing: a test in it would be measured, too."""
        self._on = on
        for name in ("receive", "request"):
            if on:
                delattr(self, name)
            else:
                setattr(self, name, _nothing)

    def model(self, plan: Plan) -> ModelMetrics:
        super().model(plan)
        return _SwitchedModelMetrics(self, plan)


class _SwitchedModelMetrics(ModelMetrics):
    def __init__(self, metrics: SwitchedMetrics, plan: Plan) -> None:
        super().__init__(metrics, plan)
        self._switch = metrics

    def waited(self, seconds: Sequence[float]) -> None:
        self._switch.seen += len(seconds)
        if self._switch.on:
            ModelMetrics.waited(self, seconds)

    def ran(self, bucket: int, rows: int, copy_in_s: float, replay_s: float, copy_out_s: float) -> None:
        if self._switch.on:
            ModelMetrics.ran(self, bucket, rows, copy_in_s, replay_s, copy_out_s)


def _nothing(*_arguments: object) -> None:
    """Counts nothing."""


@app.command()
def serve(models: Path, port: int, metrics_port: int, cache_dir: Path, out: Path) -> None:
    """What is measured: the server's own. ``out``: a file for what it saw, written at its end."""
    config = ServerConfig.of(models=models, port=port, metrics_port=metrics_port, cache_dir=cache_dir)
    made: list[SwitchedMetrics] = []

    def application() -> tuple[Application, SwitchedMetrics]:
        made.append(SwitchedMetrics())
        return Application(config, metrics=made[0]), made[0]

    seen = serve_switching(application, SLICE_S)
    out.write_text(json.dumps({"slices": [vars(one) for one in seen], "scrape_s": _scrape_s(made[0])}))


def _scrape_s(metrics: Metrics) -> float:
    begin = time.process_time()
    for _ in range(SCRAPES):
        generate_latest(metrics.registry)
    return (time.process_time() - begin) / SCRAPES


@app.command()
def measure(
    seconds: Annotated[float, typer.Option(help="Of load.")] = 40.0,
    callers: int = 32,
    cores: Annotated[int, typer.Option(help="Of the server; the generator has the others.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = RESULTS,
) -> None:
    """Load a server, write what its slices say."""
    found = json.loads(load("bench.metrics_cost", callers=callers, cores=cores, seconds=seconds))
    report = {
        "environment": environment(),
        "settings": {"model": MODEL, "callers": callers, "server cores": cores, "seconds": seconds},
        **summary([Slice(**one) for one in found["slices"]], found["scrape_s"]),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics_cost.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({name: value for name, value in report.items() if name != "environment"}))


def summary(slices: Sequence[Slice], scrape_s: float) -> dict[str, object]:
    """See ``compared``; and what a scrape costs."""
    return {
        **compared(slices),
        "a scrape, ms": round(scrape_s * 1e3, 2),
        "of a core's time, a scrape every 5 s": round(scrape_s / SCRAPE_EVERY_S, 5),
    }


if __name__ == "__main__":
    app()
