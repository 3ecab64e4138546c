"""What tracing costs of the throughput at saturation: python -m bench.tracing_cost measure

One server under one load samples a share of its requests for two seconds and none for the next two, and so on; a
collector on other cores takes the spans, which the server sends within that time, too. In the other seconds no request
is looked at, and none is sampled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import grpc
import typer

from bench.environment import environment
from bench.switched import MODEL, Slice, compared, load, serve_switching
from opara_server.app import Application
from opara_server.config import ServerConfig
from opara_server.observe.metrics import Metrics
from opara_server.observe.tracing import BatchSpan, Call, RequestSpan, Tracer, open_tracer

RESULTS = Path(__file__).resolve().parent / "results"
SLICE_S = 2.0
SEND_EVERY_MS = 500  # so that what a slice costs falls into it
EXPORT = "opentelemetry.proto.collector.trace.v1.TraceService", "Export"
app = typer.Typer(add_completion=False)


class SwitchedTracer:
    """Traces only while it is ``on``. ``counted``: what counts requests."""

    def __init__(self, tracer: Tracer, counted: SeenMetrics) -> None:
        self.on = True
        self._tracer = tracer
        self._counted = counted

    @property
    def seen(self) -> int:
        return self._counted.seen

    def begin(self, method: str, call: Call) -> RequestSpan | None:
        return self._tracer.begin(method, call) if self.on else None

    def batch(self, batch: BatchSpan) -> None:
        self._tracer.batch(batch)

    def close(self) -> None:
        self._tracer.close()


class SeenMetrics(Metrics):
    """``seen``: requests."""

    seen = 0

    def request(self, model: str, code: str, seconds: float) -> None:
        self.seen += 1
        super().request(model, code, seconds)


@app.command()
def serve(models: Path, port: int, metrics_port: int, cache_dir: Path, out: Path) -> None:
    """What is measured: the server's own. ``out``: a file for what it saw, written at its end."""
    config = ServerConfig.of(models=models, port=port, metrics_port=metrics_port, cache_dir=cache_dir)

    def application() -> tuple[Application, SwitchedTracer]:
        tracer, metrics = open_tracer(), SeenMetrics()
        assert tracer is not None
        switched = SwitchedTracer(tracer, metrics)
        return Application(config, metrics=metrics, tracer=switched), switched

    out.write_text(json.dumps([asdict(one) for one in serve_switching(application, SLICE_S)]))


@app.command()
def measure(
    share: Annotated[float, typer.Option(help="Of requests that are sampled.")] = 0.01,
    seconds: Annotated[float, typer.Option(help="Of load.")] = 80.0,
    callers: int = 32,
    cores: Annotated[int, typer.Option(help="Of the server; the generator and the collector have the others.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = RESULTS,
) -> None:
    """Load a server, write what its slices say."""
    with _collector() as (endpoint, received):
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": str(SEND_EVERY_MS),
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": str(share),
        }
        told = load("bench.tracing_cost", callers=callers, cores=cores, seconds=seconds, environment=variables)
    settings = {"model": MODEL, "callers": callers, "server cores": cores, "seconds": seconds, "share": share}
    slices = [Slice(**one) for one in json.loads(told)]
    report = {
        "environment": environment(),
        "settings": settings,
        **compared(slices),
        "bytes sent per sampled request": round(sum(received) / (share * sum(s.requests for s in slices if s.on))),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "tracing_cost.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({name: value for name, value in report.items() if name != "environment"}))


@contextmanager
def _collector() -> Iterator[tuple[str, list[int]]]:
    """Its address, and the bytes of what it has been sent: it looks at nothing."""
    received: list[int] = []

    def export(message: bytes, _context: grpc.ServicerContext) -> bytes:
        received.append(len(message))
        return b""

    server = grpc.server(ThreadPoolExecutor(2))
    service, method = EXPORT
    handlers = {method: grpc.unary_unary_rpc_method_handler(export)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield endpoint, received
    finally:
        server.stop(None).wait()


if __name__ == "__main__":
    app()
