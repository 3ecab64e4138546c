"""Every metric of the server: its name, its labels and its buckets stand here and nowhere else.

Labels are bounded: a model's name is used only once the repository has it, everything else counts as UNKNOWN_MODEL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, ProcessCollector, disable_created_metrics

from opara_server.engine.plan import SEQUENTIAL, Plan
from opara_server.engine.trace import Occupancy
from opara_server.observe.causes import Cause
from opara_server.observe.declared import Declared, Kind
from opara_server.observe.exposition import Exposition, Page
from opara_server.observe.model_metrics import ModelMetrics
from opara_server.observe.tallies import Count, CountFamily, Distribution, DistributionFamily, Elsewhere

BUILD_FACTS = ("version", "torch", "grpc")
disable_created_metrics()  # type: ignore[no-untyped-call]  # of its own counters: those of tallies.py have none
_TOGETHER = 64  # requests that are counted at a time; all are at a scrape
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
# Told as 0 before there are any: a counter that begins at 1 has not increased, says Prometheus.
FORESEEN = ("OK", "INTERNAL", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
Answers = tuple[Count, Count | None, Distribution]
"""Per model and code: requests, those rejected (None: they were not), and the latency of those that were not."""

REQUEST_SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_DEVICE_SECONDS = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """All metrics of one server process, in a registry of their own; ``declared``: what they are, before they have
    values."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.declared: list[Declared] = []
        self._elsewhere = Elsewhere()
        self.registry.register(self._elsewhere)  # first: it is asked before the others are read
        self._known: set[str] = set()
        self._shown: dict[str, Plan] = {}  # by model that serves
        self._answers: dict[tuple[str, str], Answers] = {}
        self._uncounted: dict[tuple[str, str], list[float]] = {}  # seconds of requests, by model and code
        self._counting = threading.Lock()  # answers come from every thread
        self._elsewhere.callbacks.append(self._count)
        self._exposition: Exposition | None = None
        model, bucket = ["model"], ["model", "bucket"]
        self.request_seconds = self._histogram(
            "request_seconds", "Latency within the server of requests that were not rejected.", model, REQUEST_SECONDS
        )
        self.queue_seconds = self._histogram("queue_seconds", "From submit to a batch.", model, REQUEST_SECONDS)
        self.copy_in_seconds = self._histogram(
            "copy_in_seconds", "Request bytes to the device, of a batch.", model, _DEVICE_SECONDS
        )
        self.replay_seconds = self._histogram("replay_seconds", "One run of the graph.", bucket, _DEVICE_SECONDS)
        self.copy_out_seconds = self._histogram(
            "copy_out_seconds", "Answers from the device, of a batch.", model, _DEVICE_SECONDS
        )
        self.requests = self._counts("requests", "Requests by the gRPC code of their answer.", [*model, "code"])
        self.received = self._counts("received", "Requests that have come: those answered, and those in flight.", model)
        self._coming: dict[str, Count] = {}
        self._of_no_model = self.received.labels(UNKNOWN_MODEL)
        self.rejected = self._counts("rejected", "Requests that were not executed, by reason.", [*model, "reason"])
        self.rows = self._counts("rows", "Rows executed.", model)
        self.batches = self._counts("batches", "Batches executed.", model)
        self.padded_rows = self._counts("padded_rows", "Rows of padding executed.", model)
        self.replays = self._counts("replays", "Graph replays.", [*bucket, "policy"])
        self.fallbacks = self._gauge("schedule_fallbacks", "Buckets that run sequentially for want of better.", model)
        self.queue_depth_rows = self._gauge("queue_depth_rows", "Rows waiting.", model)
        self.plan_speedup = self._gauge("plan_speedup", "Measured, over the sequential graph.", bucket)
        self.graph_bytes = self._gauge("graph_bytes", "Peak bytes of activations while the graph runs.", bucket)
        self.stream_busy_ratio = self._gauge(
            "stream_busy_ratio", "Share of a traced replay for which the stream was busy.", [*bucket, "stream"]
        )
        self.stream_concurrency = self._gauge("stream_concurrency", "Busy streams, averaged while one is busy.", bucket)
        self.streams_busy_seconds = self._gauge(
            "streams_busy_seconds", "Seconds per traced replay with exactly so many busy streams.", [*bucket, "busy"]
        )
        self.stream_sampled = self._gauge(
            "stream_sample_timestamp_seconds", "When streams were last traced, in Unix time.", bucket
        )
        self.stream_sampling_seconds = self._counter(
            "stream_sampling_seconds", "Time that traces took, for which requests waited.", model
        )
        self.workers_replaced = self._counter("workers_replaced", "Workers that were started again, by why.", ["cause"])
        for cause in Cause:
            self.workers_replaced.labels(cause)  # 0, from which an increase is seen
        self.model_ready = self._gauge("model_ready", "1 while the model serves.", model)
        self._of_plans = (self.plan_speedup, self.graph_bytes)
        streams = (self.stream_busy_ratio, self.stream_concurrency, self.streams_busy_seconds, self.stream_sampled)
        self._of_streams = streams
        self._build = Info("opara_build", "What is running.", registry=self.registry)
        self.declared.append(Declared("opara_build_info", "gauge", "1; its labels say what is running.", BUILD_FACTS))
        ProcessCollector(registry=self.registry)

    def _declare(
        self, name: str, kind: Kind, text: str, labels: Sequence[str], bounds: Sequence[float] = ()
    ) -> tuple[str, str, Sequence[str]]:
        declared = Declared(f"opara_{name}", kind, text, tuple(labels), tuple(bounds))
        self.declared.append(declared)
        return declared.name, text, labels

    def _histogram(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> DistributionFamily:
        return DistributionFamily(*self._declare(name, "histogram", text, labels, bounds), bounds, self.registry)

    def _counts(self, name: str, text: str, labels: Sequence[str]) -> CountFamily:
        return CountFamily(*self._declare(f"{name}_total", "counter", text, labels), self.registry)

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(*self._declare(f"{name}_total", "counter", text, labels), registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str]) -> Gauge:
        return Gauge(*self._declare(name, "gauge", text, labels), registry=self.registry)

    def build_info(self, *, version: str, torch: str, grpc: str) -> None:
        """Versions, as labels of opara_build_info."""
        self._build.info(dict(zip(BUILD_FACTS, (version, torch, grpc), strict=True)))

    def add_model(self, name: str) -> None:
        """From now on ``name`` is a label; it is not ready yet."""
        self._known.add(name)
        self._coming[name] = self.received.labels(name)
        with self._counting:
            for code in FORESEEN:
                self._bind_answers(name, code)
        self.set_ready(name, ready=False)

    def set_ready(self, name: str, *, ready: bool) -> None:
        self.model_ready.labels(name).set(ready)

    def receive(self, model: str) -> None:
        """One request has come. From one thread. ``model`` may be anything a client sent."""
        self._coming.get(model, self._of_no_model).value += 1

    def refuse(self, model: str, code: str, seconds: float) -> None:
        """One request has come and was answered at once. From the thread of ``receive``."""
        self.receive(model)
        self.request(model, code, seconds)

    def request(self, model: str, code: str, seconds: float) -> None:
        """One request that had come was answered with the gRPC code of that name."""
        uncounted = self._uncounted.get((model, code))
        if uncounted is None:
            uncounted = self._uncounted.setdefault((self._label(model), code), [])
        uncounted.append(seconds)
        if len(uncounted) >= _TOGETHER:
            self._count()

    def _count(self) -> None:
        """Many at once: a third of the time, and no lock for each."""
        with self._counting:
            for (label, code), uncounted in list(self._uncounted.items()):
                seconds = uncounted[:]
                del uncounted[: len(seconds)]  # more may have come meanwhile
                count, rejected, latency = self._answers.get((label, code)) or self._bind_answers(label, code)
                count.value += len(seconds)
                if rejected is None:
                    latency.observe_all(seconds)
                else:
                    rejected.value += len(seconds)

    def _label(self, model: str) -> str:
        return model if model in self._known else UNKNOWN_MODEL

    def exemplar(self, model: str, code: str, seconds: float, trace_id: int, at: float | None = None) -> None:
        """One of those requests was sampled. ``at``: when it was answered, in Unix time; None: now."""
        if code not in REASONS:
            self.request_seconds.labels(self._label(model)).exemplify(seconds, trace_id, at)

    def add_requests(
        self, model: str, received: int, codes: Mapping[str, int], executed: Sequence[int], seconds: float
    ) -> None:
        """Requests of another process: how many have come, how many were answered, by code, and the latencies of those
        that were executed, by bucket of REQUEST_SECONDS, and their sum."""
        label = self._label(model)
        with self._counting:
            self.received.labels(label).value += received
            for code, number in codes.items():
                count, rejected, _ = self._answers.get((label, code)) or self._bind_answers(label, code)
                count.value += number
                if rejected is not None:
                    rejected.value += number
            self.request_seconds.labels(label).add(executed, seconds)

    def add_lost(self, model: str, number: int) -> None:
        """Requests that ended with the process that had them. Nobody knows which of them were executed: they count
        as answered with UNAVAILABLE, which is what gRPC told their clients, but not as rejected."""
        with self._counting:
            self.requests.labels(self._label(model), "UNAVAILABLE").value += number

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
        """What is counted of a model that is about to serve."""
        self.stream_sampling_seconds.labels(plan.model)
        return ModelMetrics(self, plan)

    def show(self, plan: Plan) -> None:
        """What serves from now on. Of batch sizes that only the plan before had nothing is told any more."""
        before, self._shown[plan.model] = self._shown.get(plan.model), plan
        sizes = {bucket.batch_size for bucket in plan.buckets}
        for size in {bucket.batch_size for bucket in before.buckets} - sizes if before else ():
            _remove(self._of_plans, model=plan.model, bucket=str(size))
        for bucket in plan.buckets:
            self.plan_speedup.labels(plan.model, str(bucket.batch_size)).set(bucket.speedup)
            self.graph_bytes.labels(plan.model, str(bucket.batch_size)).set(bucket.peak_bytes)
        wanted_better = (plan.fallback_reason or any(c.given_up for c in b.candidates) for b in plan.buckets)
        fallen = (better and b.policy == SEQUENTIAL for better, b in zip(wanted_better, plan.buckets, strict=True))
        self.fallbacks.labels(plan.model).set(sum(map(bool, fallen)))

    def forget(self, name: str) -> None:
        """The model serves no more: of it only what was counted is still told."""
        self._shown.pop(name, None)
        of_models = (self.model_ready, self.queue_depth_rows, self.fallbacks)
        _remove((*of_models, *self._of_plans, *self._of_streams), model=name)

    def watch_queue(self, name: str, rows: Callable[[], int]) -> None:
        """``rows`` is called at every scrape: the queue itself pays nothing."""
        self.queue_depth_rows.labels(name).set_function(rows)

    def occupancy(self, model: str, bucket: int, seen: Occupancy, at: float, before: Occupancy | None = None) -> None:
        """What a trace of real replays showed of a bucket's streams. ``at``: Unix time; ``before``: what the last one
        did: its streams may be more, and are those of another schedule then."""
        labels = (model, str(bucket))
        if before is not None:
            for stream in before.stream_busy.keys() - seen.stream_busy.keys():
                self.stream_busy_ratio.remove(*labels, str(stream))
            for busy in before.busy_us.keys() - seen.busy_us.keys():
                self.streams_busy_seconds.remove(*labels, str(busy))
        self.stream_concurrency.labels(*labels).set(seen.concurrency)
        for stream, share in seen.stream_busy.items():
            self.stream_busy_ratio.labels(*labels, str(stream)).set(share)
        for busy, time_us in seen.busy_us.items():
            self.streams_busy_seconds.labels(*labels, str(busy)).set(time_us / 1e6)
        self.stream_sampled.labels(*labels).set(at)

    def no_occupancy(self, model: str, bucket: int) -> None:
        """What was told of the streams is not of what serves now."""
        _remove(self._of_streams, model=model, bucket=str(bucket))

    def start(self, host: str, port: int, pages: Mapping[str, Page] | None = None) -> int:
        """Serve /metrics, and ``pages`` by path, from a thread; returns the bound port (``port`` 0: any). Raises
        OSError."""
        assert self._exposition is None
        self._exposition = Exposition(host, port, self.registry, pages or {})
        return self._exposition.port

    def stop(self) -> None:
        """Stop serving them, if they are served."""
        if self._exposition is not None:
            self._exposition.stop()
            self._exposition = None

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _remove(gauges: Iterable[Gauge], **labels: str) -> None:
    for gauge in gauges:
        gauge.remove_by_labels(labels)
