"""Spans by OpenTelemetry: the only file of the server that imports it.

Whether a request is sampled is decided as it comes; its spans are made afterwards, from the times that were measured,
by a thread of their own, and sent by the SDK's.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import entry_points
from queue import SimpleQueue
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, StatusCode, TraceFlags

from opara_server.observe.tracing import BatchSpan, Call, Metadata, Sampled, SpanContext, Times
from opara_server.settings import ConfigError
from opara_server.version import VERSION

log = logging.getLogger(__name__)

FAULTS = frozenset({2, 4, 12, 13, 14, 15})  # gRPC's codes that make a server's span one of an error, by the conventions
_TOGETHER_S = 0.1  # for which spans are gathered before any is made: one wake-up for many
_MOST = 1 << 14  # records that may wait to be made spans; further ones are dropped
_CLOCKS_NS = 1_000_000  # that the system's clock is set by, or drifts, before it is looked at again
_READINGS = 3
_CLOSE_S = 3.0
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_NOBODY = Context()  # no parent
_OTLP = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}  # exporters, by protocol


class OtelTracer:
    """See Tracer. Owns the processors. ``sampler``: who decides."""

    def __init__(self, processors: Sequence[SpanProcessor], sampler: Sampler | None = None) -> None:
        """``sampler``: instead of the environment's."""
        self.sampler = sampler or TracerProvider(shutdown_on_exit=False).sampler
        self._ids = RandomIdGenerator()
        self._propagator = propagate.get_global_textmap()
        self._fields = frozenset(self._propagator.fields)
        self._methods: dict[str, dict[str, str]] = {}  # attributes, by full path
        self._decided = _Decided()
        self._provider = TracerProvider(self._decided, _resource(), shutdown_on_exit=False, id_generator=self._decided)
        for processor in processors:
            self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("opara_server", VERSION)
        self._records: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._dropped = 0
        self._closing = threading.Event()
        self._epoch_ns = _epoch_ns()  # of time.monotonic(), in Unix time; the thread's own
        self._thread = threading.Thread(target=self._run, name="opara-spans", daemon=True)
        self._thread.start()

    def begin(self, method: str, call: Call) -> _Request | None:
        try:
            return self._begin(method, call)
        except Exception:  # whatever propagators and samplers do: the request goes on
            log.exception("it cannot be said whether a request is sampled")
            return None

    def _begin(self, method: str, call: Call) -> _Request | None:
        parent = self._parent(call.invocation_metadata() or ())
        trace_id = 0 if parent is _NOBODY else trace.get_current_span(parent).get_span_context().trace_id
        trace_id = trace_id or self._ids.generate_trace_id()
        attributes = self._methods.get(method) or self._add_method(method)
        result = self.sampler.should_sample(parent, trace_id, method[1:], SpanKind.SERVER, attributes)
        if result.decision is not Decision.RECORD_AND_SAMPLE:
            return None
        return _Request(self, method[1:], parent, trace_id, self._ids.generate_span_id(), result)

    def _parent(self, metadata: Metadata) -> Context:
        carrier: dict[str, list[str]] = {}
        for name, value in metadata:
            if name in self._fields and isinstance(value, str):
                carrier.setdefault(name, []).append(value)
        return self._propagator.extract(carrier, _NOBODY) if carrier else _NOBODY

    def _add_method(self, method: str) -> dict[str, str]:
        _, service, name = method.split("/")
        self._methods[method] = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        return self._methods[method]

    def batch(self, batch: BatchSpan) -> None:
        self.later(partial(self._batch, batch))

    def later(self, record: Callable[[], None]) -> None:
        """On the thread of spans. Any thread."""
        if self._records.qsize() < _MOST:
            self._records.put(record)
        else:
            self._dropped += 1

    def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        self._records.put(None)
        ending = threading.Thread(target=self._end, name="opara-spans-end", daemon=True)
        ending.start()
        ending.join(_CLOSE_S)  # an unreachable collector is tried for longer

    def _end(self) -> None:
        self._thread.join()
        self._provider.shutdown()

    def _run(self) -> None:
        going_on = True
        while going_on:
            records = [self._records.get()]
            self._closing.wait(_TOGETHER_S)
            while not self._records.empty():
                records.append(self._records.get())
            epoch_ns = _epoch_ns()
            if abs(epoch_ns - self._epoch_ns) > _CLOCKS_NS:  # otherwise what fits together would be moved apart
                self._epoch_ns = epoch_ns
            for record in records:
                if record is None:
                    going_on = False
                else:
                    self._make(record)
            if self._dropped:
                log.warning("spans were dropped: more came than could be made", extra={"records": self._dropped})
                self._dropped = 0

    def _make(self, record: Callable[[], None]) -> None:
        try:
            record()
        except Exception:
            log.exception("a span cannot be made")

    def _unix_ns(self, at: float) -> int:
        return self._epoch_ns + int(at * 1e9)

    def _span(
        self,
        name: str,
        times: Times,
        parent: Context = _NOBODY,
        attributes: dict[str, Any] | None = None,
        links: Sequence[Link] = (),
        kind: SpanKind = SpanKind.INTERNAL,
        fault: str | None = None,
    ) -> trace.Span:
        span = self._tracer.start_span(name, parent, kind, attributes, links, self._unix_ns(times[0]))
        if fault is not None:
            span.set_status(trace.Status(StatusCode.ERROR, fault))
        span.end(self._unix_ns(times[1]))
        return span

    def request(self, asked: _Request, times: Times, attributes: dict[str, Any], code: int, text: str) -> None:
        """On the thread of spans."""
        known = {name: value for name, value in attributes.items() if value}
        attributes = {**dict(asked.result.attributes or {}), "rpc.grpc.status_code": code, **known}
        fault = text if code in FAULTS else None
        with self._decided.on(asked):
            self._span(asked.name, times, asked.parent, attributes, kind=SpanKind.SERVER, fault=fault)

    def _batch(self, batch: BatchSpan) -> None:
        attributes = {
            "opara.model": batch.model,
            "opara.batch.size": batch.bucket,
            "opara.batch.rows": batch.rows,
            "opara.batch.requests": batch.requests,
        }
        parents = [_otel(sampled.span) for sampled in batch.sampled]
        links = [Link(parent) for parent in parents]
        fault = "the batch failed" if batch.moments is None else None
        shared = self._span("batch", (batch.taken, batch.ended), attributes=attributes, links=links, fault=fault)
        link = Link(shared.get_span_context())
        for sampled, parent in zip(batch.sampled, parents, strict=True):
            self._parts(batch, sampled, trace.set_span_in_context(trace.NonRecordingSpan(parent), Context()), link)

    def _parts(self, batch: BatchSpan, sampled: Sampled, parent: Context, link: Link) -> None:
        """What a request had of a batch."""
        if sampled.arrived is not None:
            self._span("queue", (sampled.arrived, batch.taken), parent)
        if batch.moments is None:
            return
        copy_in, replay, copy_out = batch.moments
        self._span("fill", (batch.taken, copy_in[0]), parent)
        self._span("copy in", copy_in, parent)
        self._span("replay", replay, parent, {"opara.batch.size": batch.bucket}, [link])
        self._span("copy out", copy_out, parent)


class _Request:
    """See RequestSpan."""

    __slots__ = ("_began", "_tracer", "context", "name", "parent", "result")

    def __init__(
        self, tracer: OtelTracer, name: str, parent: Context, trace_id: int, span_id: int, result: SamplingResult
    ) -> None:
        self._began = time.monotonic()
        self._tracer = tracer
        self.name = name
        self.parent = parent
        self.result = result
        self.context = SpanContext(trace_id, span_id, result.trace_state.to_header() if result.trace_state else "")

    def end(self, *, code: int, text: str, model: str, rows: int, request_id: str) -> None:
        attributes = {"opara.model": model, "opara.rows": rows, "opara.request_id": request_id}
        times = self._began, time.monotonic()
        self._tracer.later(partial(self._tracer.request, self, times, attributes, code, text))


class _Decided(Sampler, IdGenerator):
    """What the SDK asks for as it makes a span: all are sampled by then, and a request's own has its ids."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()
        self._asked: _Request | None = None

    @contextmanager
    def on(self, asked: _Request) -> Iterator[None]:
        """The span that is made within is this request's own."""
        self._asked = asked
        try:
            yield
        finally:
            self._asked = None

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,  # noqa: ARG002 - the SDK's
        name: str,  # noqa: ARG002
        kind: SpanKind | None = None,  # noqa: ARG002
        attributes: Any = None,
        *_links: Any,
    ) -> SamplingResult:
        state = trace.get_current_span(parent_context).get_span_context().trace_state
        if self._asked is not None:
            state = self._asked.result.trace_state or state
        return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, state)

    def get_description(self) -> str:
        return "decided when the request came"

    def generate_trace_id(self) -> int:
        return self._asked.context.trace_id if self._asked else self._random.generate_trace_id()

    def generate_span_id(self) -> int:
        return self._asked.context.span_id if self._asked else self._random.generate_span_id()


def tracer_of_environment() -> OtelTracer | None:
    """See open_tracer."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        log.warning("nothing is traced: OTEL_SDK_DISABLED")
        return None
    names = [name.strip() for name in (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")]
    names = [name for name in names if name != "none"]
    if not names:
        log.warning("nothing is traced: OTEL_TRACES_EXPORTER names no exporter")
        return None
    tracer = OtelTracer([BatchSpanProcessor(_exporter(name)) for name in names])
    log.info("requests are traced", extra={"exporters": names, "sampler": tracer.sampler.get_description()})
    return tracer


def _exporter(name: str) -> Any:
    """As OpenTelemetry's packages name theirs. Raises ConfigError."""
    if name == "otlp":
        protocols = map(os.environ.get, ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"))
        protocol = next(filter(None, protocols), "grpc")
        if protocol not in _OTLP:
            raise ConfigError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} is none of {', '.join(_OTLP)}")
        name = _OTLP[protocol]
    found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not found:
        raise ConfigError(f"OTEL_TRACES_EXPORTER: no exporter {name!r} is installed")
    return found[0].load()()


def _resource() -> Resource:
    """The environment's, and a name where it gives none."""
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "opara-serve"}))
    return resource


def _epoch_ns() -> int:
    """Of a few readings the largest: whoever is held up between the two clocks reads too little."""
    return max(time.time_ns() - time.monotonic_ns() for _ in range(_READINGS))


def _otel(span: SpanContext) -> trace.SpanContext:
    state = trace.TraceState.from_header([span.state]) if span.state else None
    return trace.SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=_SAMPLED, trace_state=state)
