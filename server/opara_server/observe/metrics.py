"""Every metric of the server: its name, its labels and its buckets stand here and nowhere else.

Labels are bounded: a model's name is used only once the repository has it, everything else counts as UNKNOWN_MODEL.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, Metric, ProcessCollector, start_http_server
from prometheus_client.registry import Collector

from opara_server.engine.plan import SEQUENTIAL, Plan
from opara_server.engine.trace import Occupancy
from opara_server.observe.tallies import Count, CountFamily, Distribution, DistributionFamily

UNKNOWN_MODEL = "(unknown)"  # no folder of a model may have parentheses in its name
REASONS = {
    "INVALID_ARGUMENT": "invalid_input",
    "NOT_FOUND": "unknown_model",
    "UNAVAILABLE": "unavailable",
    "RESOURCE_EXHAUSTED": "queue_full",
    "DEADLINE_EXCEEDED": "deadline",
    "UNAUTHENTICATED": "credentials",
    "PERMISSION_DENIED": "credentials",
}
Answers = tuple[Count, Count | None, Distribution]
"""Per model and code: requests, those rejected (None: they were executed), and the latency of those that were not."""

REQUEST_SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_DEVICE_SECONDS = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """All metrics of one server process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._elsewhere = _Elsewhere()
        self.registry.register(self._elsewhere)  # first: it is asked before the others are read
        self._known: set[str] = set()
        self._answers: dict[tuple[str, str], Answers] = {}
        self._answered = threading.Lock()  # answers come from every thread
        self._exposition: tuple[WSGIServer, threading.Thread] | None = None
        model, bucket = ["model"], ["model", "bucket"]
        self.request_seconds = self._histogram(
            "request_seconds", "Latency of executed requests, within the server.", model, REQUEST_SECONDS
        )
        self.queue_seconds = self._histogram("queue_seconds", "From submit to a batch.", model, REQUEST_SECONDS)
        self.copy_in_seconds = self._histogram(
            "copy_in_seconds", "Request bytes to the device.", model, _DEVICE_SECONDS
        )
        self.replay_seconds = self._histogram("replay_seconds", "One run of the graph.", bucket, _DEVICE_SECONDS)
        self.copy_out_seconds = self._histogram("copy_out_seconds", "Answers from the device.", model, _DEVICE_SECONDS)
        self.requests = self._counts("requests", "Requests by the gRPC code of their answer.", ["model", "code"])
        self.rejected = self._counts("rejected", "Requests that were not executed, by reason.", ["model", "reason"])
        self.rows = self._counts("rows", "Rows executed.", model)
        self.batches = self._counts("batches", "Batches executed.", model)
        self.padded_rows = self._counts("padded_rows", "Rows of padding executed.", model)
        self.replays = self._counts("replays", "Graph replays.", ["model", "bucket", "policy"])
        self.fallbacks = self._counter("schedule_fallbacks", "Buckets that run sequentially for want of better.", model)
        self.queue_depth_rows = self._gauge("queue_depth_rows", "Rows waiting.", model)
        self.plan_speedup = self._gauge("plan_speedup", "Measured, over the sequential graph.", bucket)
        self.graph_bytes = self._gauge("graph_bytes", "Peak bytes of activations while the graph runs.", bucket)
        self.stream_busy_ratio = self._gauge(
            "stream_busy_ratio",
            "Share of a traced replay for which the stream was busy.",
            ["model", "bucket", "stream"],
        )
        self.stream_concurrency = self._gauge("stream_concurrency", "Busy streams, averaged while one is busy.", bucket)
        self.streams_busy_seconds = self._gauge(
            "streams_busy_seconds", "Seconds per traced replay with exactly so many busy streams.", [*bucket, "busy"]
        )
        self.model_ready = self._gauge("model_ready", "1 once the model serves.", model)
        self._build = Info("opara_build", "What is running.", registry=self.registry)
        ProcessCollector(registry=self.registry)

    def _histogram(self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float]) -> DistributionFamily:
        return DistributionFamily(f"opara_{name}", text, labels, buckets, self.registry)

    def _counts(self, name: str, text: str, labels: Sequence[str]) -> CountFamily:
        return CountFamily(f"opara_{name}_total", text, labels, self.registry)

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(f"opara_{name}_total", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str]) -> Gauge:
        return Gauge(f"opara_{name}", text, labels, registry=self.registry)

    def build_info(self, **facts: str) -> None:
        """Versions and the like, as labels of opara_build_info."""
        self._build.info(facts)

    def add_model(self, name: str) -> None:
        """From now on ``name`` is a label; it is not ready yet."""
        self._known.add(name)
        self.set_ready(name, ready=False)

    def set_ready(self, name: str, *, ready: bool) -> None:
        self.model_ready.labels(name).set(ready)

    def request(self, model: str, code: str, seconds: float) -> None:
        """One request was answered with the gRPC code of that name. ``model`` may be anything a client sent."""
        label = model if model in self._known else UNKNOWN_MODEL
        with self._answered:
            count, rejected, latency = self._answers.get((label, code)) or self._bind_answers(label, code)
            count.value += 1
            if rejected is None:
                latency.observe(seconds)
            else:
                rejected.value += 1

    def add_requests(self, model: str, codes: Mapping[str, int], executed: Sequence[int], seconds: float) -> None:
        """Requests that another process answered: how many by code, and the latencies of those that were executed, by
        bucket of REQUEST_SECONDS, and their sum."""
        label = model if model in self._known else UNKNOWN_MODEL
        with self._answered:
            for code, number in codes.items():
                count, rejected, _ = self._answers.get((label, code)) or self._bind_answers(label, code)
                count.value += number
                if rejected is not None:
                    rejected.value += number
            self.request_seconds.labels(label).add(executed, seconds)

    def on_read(self, callback: Callable[[], None]) -> None:
        """Call it whenever the requests are about to be read, from the thread that reads: it may ``add_requests``."""
        self._elsewhere.callbacks.append(callback)

    def refresh(self) -> None:
        """Before reading of a metric what ``on_read`` may add to it: a scrape does so by itself."""
        self._elsewhere.ask()

    def _bind_answers(self, model: str, code: str) -> Answers:
        rejected = self.rejected.labels(model, REASONS[code]) if code in REASONS else None
        bound = self.requests.labels(model, code), rejected, self.request_seconds.labels(model)
        self._answers[model, code] = bound
        return bound

    def model(self, plan: Plan) -> ModelMetrics:
        """The metrics of a model that is about to serve; sets those that only say what its plan is."""
        for bucket in plan.buckets:
            self.plan_speedup.labels(plan.model, str(bucket.batch_size)).set(bucket.speedup)
            self.graph_bytes.labels(plan.model, str(bucket.batch_size)).set(bucket.peak_bytes)
        wanted_better = (plan.fallback_reason or any(c.given_up for c in b.candidates) for b in plan.buckets)
        fallen = (better and b.policy == SEQUENTIAL for better, b in zip(wanted_better, plan.buckets, strict=True))
        self.fallbacks.labels(plan.model).inc(sum(map(bool, fallen)))
        return ModelMetrics(self, plan)

    def occupancy(self, model: str, bucket: int, seen: Occupancy) -> None:
        """What a trace of real replays showed of a bucket's streams."""
        labels = (model, str(bucket))
        self.stream_concurrency.labels(*labels).set(seen.concurrency)
        for stream, share in seen.stream_busy.items():
            self.stream_busy_ratio.labels(*labels, str(stream)).set(share)
        for busy, time_us in seen.busy_us.items():
            self.streams_busy_seconds.labels(*labels, str(busy)).set(time_us / 1e6)

    def start(self, host: str, port: int) -> int:
        """Serve /metrics from a thread; returns the bound port (``port`` 0: any). Raises OSError."""
        assert self._exposition is None
        self._exposition = start_http_server(port, host, self.registry)
        return self._exposition[0].server_port

    def stop(self) -> None:
        """Stop serving /metrics, if it is served."""
        if self._exposition is None:
            return
        server, thread = self._exposition
        self._exposition = None
        host, port = server.server_address[:2]
        ending = threading.Thread(target=server.shutdown)
        ending.start()
        while ending.is_alive():  # it looks whether it is to end twice a second, and whenever somebody connects
            with suppress(OSError), socket.create_connection((str(host), port), timeout=1.0):
                ending.join(0.01)
        server.server_close()
        thread.join()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Elsewhere(Collector):
    """What is counted in other processes comes in when Prometheus asks; it has no metric of its own."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def ask(self) -> None:
        with self._lock:
            for callback in self.callbacks:
                callback()

    def collect(self) -> Iterable[Metric]:
        self.ask()
        return ()

    def describe(self) -> Iterable[Metric]:
        return ()


class ModelMetrics:
    """One model's children of every metric, looked up once: labels() costs more than counting. Only the executor's
    thread counts here."""

    def __init__(self, metrics: Metrics, plan: Plan) -> None:
        name = plan.model
        self._queue = metrics.queue_seconds.labels(name)
        self._copy_in = metrics.copy_in_seconds.labels(name)
        self._copy_out = metrics.copy_out_seconds.labels(name)
        self._rows = metrics.rows.labels(name)
        self._batches = metrics.batches.labels(name)
        self._padded = metrics.padded_rows.labels(name)
        self._queue_depth = metrics.queue_depth_rows.labels(name)
        sizes = {b.batch_size: (name, str(b.batch_size)) for b in plan.buckets}
        self._replay = {size: metrics.replay_seconds.labels(*labels) for size, labels in sizes.items()}
        self._replays = {b.batch_size: metrics.replays.labels(*sizes[b.batch_size], b.policy) for b in plan.buckets}

    def watch_queue(self, rows: Callable[[], int]) -> None:
        """``rows`` is called at every scrape: the queue itself pays nothing."""
        self._queue_depth.set_function(rows)

    def waited(self, seconds: Iterable[float]) -> None:
        """How long each request of a batch waited for it."""
        self._queue.observe_all(seconds)

    def ran(self, bucket: int, rows: int, copy_in_s: float, replay_s: float, copy_out_s: float) -> None:
        """One batch of ``rows`` real rows ran."""
        self._batches.value += 1
        self._rows.value += rows
        self._padded.value += bucket - rows
        self._replays[bucket].value += 1
        self._copy_in.observe(copy_in_s)
        self._replay[bucket].observe(replay_s)
        self._copy_out.observe(copy_out_s)
