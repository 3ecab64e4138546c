"""Spans by OpenTelemetry: the only file of the server that imports it.

Whether a request is sampled is decided as it comes; its spans are made afterwards, from the times that were measured,
by a thread of their own, and sent by the SDK's.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import entry_points
from operator import itemgetter
from queue import SimpleQueue
from random import getrandbits
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanKind, StatusCode, TraceFlags

from opara_server.observe.sampling import ALL, Sampling, sampling_of_environment
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
_NO_FAULT = trace.Status(StatusCode.UNSET)
_NAME = itemgetter(0)
_W3C = {"traceparent", "tracestate", "baggage"}
_NOT_SAMPLED = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][02468ace]")  # a traceparent
_NOBODY = Context()  # no parent
_OTLP = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}  # exporters, by protocol


class OtelTracer:
    """See Tracer. Owns the processors."""

    def __init__(self, processors: Sequence[SpanProcessor], sampling: Sampling) -> None:
        self._sampling = sampling
        self._processors = tuple(processors)
        self._resource = _resource()
        self._scope = InstrumentationScope("opara_server", VERSION)
        self._ids = RandomIdGenerator()
        self._propagator = propagate.get_global_textmap()
        self._fields = frozenset(self._propagator.fields)
        self._w3c = self._fields <= _W3C
        self._records: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._dropped = 0
        self._closing = threading.Event()
        self._epoch_ns = _epoch_ns()  # of time.monotonic(), in Unix time; the thread's own
        self._thread = threading.Thread(target=self._run, name="opara-spans", daemon=True)
        self._thread.start()

    def begin(self, method: str, call: Call) -> _Request | None:
        metadata = call.invocation_metadata() or ()
        if self._fields.isdisjoint(map(_NAME, metadata)):
            return self._begin(method)
        try:
            return self._begin_within(method, metadata)
        except Exception:  # whatever propagators do: the request goes on
            log.exception("it cannot be said whether a request is sampled")
            return None

    def _begin(self, method: str) -> _Request | None:
        """Without a caller's context."""
        lower = getrandbits(64)
        return self._sampled(method, getrandbits(64) << 64 | lower) if lower < self._sampling.bound else None

    def _begin_within(self, method: str, metadata: Metadata) -> _Request | None:
        carrier: dict[str, list[str]] = {}
        for name, value in metadata:
            if name in self._fields and isinstance(value, str):
                carrier.setdefault(name, []).append(value)
        parent_based = self._sampling.parent_based
        # Most callers are not sampled, which their header's looks tell in a tenth of the time that propagators take.
        if parent_based and self._w3c and _NOT_SAMPLED.fullmatch(carrier.get("traceparent", [""])[0]):
            return None
        parent = trace.get_current_span(self._propagator.extract(carrier, _NOBODY)).get_span_context()
        if not parent.is_valid:
            return self._begin(method)
        sampled = parent.trace_flags.sampled if parent_based else parent.trace_id % ALL < self._sampling.bound
        return self._sampled(method, parent.trace_id, parent) if sampled else None

    def _sampled(self, method: str, trace_id: int, parent: trace.SpanContext | None = None) -> _Request:
        state = parent.trace_state.to_header() if parent is not None else ""
        return _Request(self, method, SpanContext(trace_id, self._ids.generate_span_id(), state), parent)

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
        for processor in self._processors:
            processor.shutdown()

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
        context: trace.SpanContext,
        parent: trace.SpanContext | None = None,
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[Link] = (),
        kind: SpanKind = SpanKind.INTERNAL,
        fault: str | None = None,
    ) -> None:
        """Whole as it is made: the SDK's tracer, which takes what comes bit by bit, needs five times as long."""
        span = ReadableSpan(
            name,
            context,
            parent,
            self._resource,
            attributes,
            links=links,
            kind=kind,
            status=_NO_FAULT if fault is None else trace.Status(StatusCode.ERROR, fault),
            start_time=self._unix_ns(times[0]),
            end_time=self._unix_ns(times[1]),
            instrumentation_scope=self._scope,
        )
        for processor in self._processors:
            processor.on_end(span)

    def request(self, asked: _Request, times: Times, attributes: Mapping[str, Any], code: int, text: str) -> None:
        """On the thread of spans."""
        _, service, method = asked.method.split("/")
        rpc = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method, "rpc.grpc.status_code": code}
        known = {name: value for name, value in attributes.items() if value}
        fault = text if code in FAULTS else None
        context, name = _otel(asked.context), asked.method[1:]
        self._span(name, times, context, asked.parent, rpc | known, kind=SpanKind.SERVER, fault=fault)

    def _batch(self, batch: BatchSpan) -> None:
        attributes = {
            "opara.model": batch.model,
            "opara.batch.size": batch.bucket,
            "opara.batch.rows": batch.rows,
            "opara.batch.requests": batch.requests,
        }
        context = self._context(self._ids.generate_trace_id())
        parents = [_otel(sampled.span) for sampled in batch.sampled]
        links = [Link(parent) for parent in parents]
        fault = "the batch failed" if batch.moments is None else None
        self._span("batch", (batch.taken, batch.ended), context, attributes=attributes, links=links, fault=fault)
        link = Link(context)
        for sampled, parent in zip(batch.sampled, parents, strict=True):
            self._parts(batch, sampled, parent, link)

    def _parts(self, batch: BatchSpan, sampled: Sampled, parent: trace.SpanContext, link: Link) -> None:
        """What a request had of a batch."""

        def part(name: str, times: Times, said: Mapping[str, int] | None = None, links: Sequence[Link] = ()) -> None:
            context = self._context(parent.trace_id, parent.trace_state)
            self._span(name, times, context, parent, said, links)

        if sampled.arrived is not None:
            part("queue", (sampled.arrived, batch.taken))
        if batch.moments is None:
            return
        copy_in, replay, copy_out = batch.moments
        part("fill", (batch.taken, copy_in[0]))
        part("copy in", copy_in)
        part("replay", replay, {"opara.batch.size": batch.bucket}, [link])
        part("copy out", copy_out)

    def _context(self, trace_id: int, state: trace.TraceState | None = None) -> trace.SpanContext:
        """Of a new span."""
        return trace.SpanContext(
            trace_id, self._ids.generate_span_id(), is_remote=False, trace_flags=_SAMPLED, trace_state=state
        )


class _Request:
    """See RequestSpan. ``parent``: of its caller's; None where it has none."""

    __slots__ = ("_began", "_tracer", "context", "method", "parent")

    def __init__(self, tracer: OtelTracer, method: str, context: SpanContext, parent: trace.SpanContext | None) -> None:
        self._began = time.monotonic()
        self._tracer = tracer
        self.method = method
        self.context = context
        self.parent = parent

    def end(self, *, code: int, text: str, model: str, rows: int, request_id: str) -> None:
        attributes = {"opara.model": model, "opara.rows": rows, "opara.request_id": request_id}
        times = self._began, time.monotonic()
        self._tracer.later(partial(self._tracer.request, self, times, attributes, code, text))


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
    sampling = sampling_of_environment()
    tracer = OtelTracer([BatchSpanProcessor(_exporter(name)) for name in names], sampling)
    said = {"exporters": names, "share": sampling.bound / ALL, "parent_based": sampling.parent_based}
    log.info("requests are traced", extra=said)
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
