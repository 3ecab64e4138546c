"""Spans on their way to a collector, as OpenTelemetry's environment variables say."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace

import pytest
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from opara_server.observe import spans
from opara_server.observe.sampling import ALL, Sampling
from opara_server.observe.spans import OtelTracer
from opara_server.observe.tracing import BatchSpan, Metadata, Moments, Sampled, SpanContext, Tracer, open_tracer
from opara_server.settings import ConfigError
from tests.otlp import PATIENCE_S, Received, grpc_receiver, http_receiver

METHOD = "/opara.v1.InferenceService/Infer"


@pytest.fixture(autouse=True)
def _only_what_a_test_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


class Call:
    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Metadata:
        return self._metadata


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.count = 0

    def export(self, _spans: object) -> SpanExportResult:
        self.count += 1
        return SpanExportResult.SUCCESS


def opened() -> Tracer:
    tracer = open_tracer()
    assert tracer is not None
    return tracer


def ask(tracer: Tracer, *metadata: tuple[str, str | bytes], code: int = 0) -> SpanContext | None:
    """One request, which took no time."""
    span = tracer.begin(METHOD, Call(*metadata))
    if span is None:
        return None
    span.end(code=code, text="", model="m", rows=1, request_id="")
    return span.context


@pytest.mark.parametrize(("protocol", "receiver"), [("", grpc_receiver), ("http/protobuf", http_receiver)])
def test_spans_reach_a_collector(
    protocol: str, receiver: Callable[[], AbstractContextManager[Received]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        tracer = opened()
        context = ask(tracer)
        assert context is not None
        moments = Moments((2.0, 2.5), (2.5, 4.5), (4.5, 5.0))
        tracer.batch(BatchSpan("m", 4, 1, 1, (Sampled(context, 1.0),), 1.5, 5.0, moments))
        tracer.close()
        (replay,) = received.wait_for("replay", 1)
        (request,) = received.named(METHOD[1:])
        (batch,) = received.named("batch")
        assert received.resources[0]["service.name"] == "opara-serve"
    assert request.trace_id == replay.trace_id == context.trace_id.to_bytes(16)
    assert replay.parent_span_id == request.span_id == context.span_id.to_bytes(8)
    assert (replay.links[0].span_id, batch.links[0].span_id) == (batch.span_id, request.span_id)
    assert replay.end_time_unix_nano - replay.start_time_unix_nano == 2_000_000_000
    assert batch.end_time_unix_nano - batch.start_time_unix_nano == 3_500_000_000


def test_the_environment_names_the_service_and_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    with grpc_receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "digits")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=one")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
        tracer = opened()
        assert all(ask(tracer) is None for _ in range(100))
        assert ask(tracer, ("traceparent", f"00-{7:032x}-{8:016x}-01")) is not None
        tracer.close()
        received.wait_for(METHOD[1:], 1)
        assert [int.from_bytes(span.trace_id) for span in received.spans] == [7]
        assert received.resources[0].items() >= {"service.name": "digits", "k8s.pod.name": "one"}.items()


@pytest.mark.parametrize(("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_the_environment_may_turn_it_off(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert open_tracer() is None


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_TRACES_EXPORTER", "pigeons", "no exporter 'pigeons' is installed"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "'http/json' is none of grpc, http/protobuf"),
    ],
)
def test_what_the_environment_gets_wrong_is_an_error(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        open_tracer()


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opara_server.observe.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError, match=r"pip install 'opara-serve\[tracing\]'"):
        open_tracer()


def test_a_propagator_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", "tracecontext,pigeons")
    for module in ("opara_server.observe.spans", "opentelemetry.propagate"):  # it looks for them once
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr("opentelemetry.propagate")
    with pytest.raises(ConfigError, match="OTEL_PROPAGATORS: Propagator pigeons not found"):
        open_tracer()


def test_a_collector_that_is_not_there_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setattr(spans, "_CLOSE_S", 0.05)
    tracer = opened()
    assert ask(tracer) is not None
    tracer.close()
    for thread in threading.enumerate():  # else it tries on, and its warnings are in other tests' logs
        if thread.name == "opara-spans-end":
            thread.join()


def test_what_a_propagator_breaks_is_a_request_without_spans(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(TraceContextTextMapPropagator):
        def extract(self, *_: object, **__: object) -> Context:
            raise RuntimeError("broken")

    usual = propagate.get_global_textmap()
    propagate.set_global_textmap(Broken())
    try:
        tracer = OtelTracer([], Sampling(ALL))
    finally:
        propagate.set_global_textmap(usual)
    assert ask(tracer, ("traceparent", f"00-{7:032x}-{8:016x}-01")) is None
    assert ask(tracer) is not None
    assert "it cannot be said whether a request is sampled" in caplog.text
    tracer.close()


def test_what_comes_too_fast_is_dropped_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Kept()
    monkeypatch.setattr(spans, "_CLOSE_S", PATIENCE_S)
    monkeypatch.setattr(spans, "_MOST", 2)
    monkeypatch.setattr(spans, "_TOGETHER_S", 60.0)
    tracer = OtelTracer([SimpleSpanProcessor(kept)], Sampling(ALL))
    for _ in range(10):
        ask(tracer)
    tracer.close()
    assert 2 <= kept.count <= 3  # the first one may have been taken already
    assert "spans were dropped" in caplog.text


def test_a_span_that_cannot_be_made_takes_no_other_along(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("broken")

    kept = Kept()
    monkeypatch.setattr(spans, "_CLOSE_S", PATIENCE_S)
    tracer = OtelTracer([SimpleSpanProcessor(kept)], Sampling(ALL))
    ask(tracer)
    tracer.later(broken)
    ask(tracer)
    tracer.close()
    assert kept.count == 2
    assert "a span cannot be made" in caplog.text
    assert "RuntimeError: broken" in caplog.text


def test_a_thread_that_is_held_up_between_two_clocks_moves_no_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns, held_up_ns = 1_000, iter((5_000_000, 0, 7_000_000, 0, 0, 0))

    def read(epoch_ns: int) -> int:
        nonlocal now_ns
        read = epoch_ns + now_ns
        now_ns += next(held_up_ns)
        return read

    clocks = SimpleNamespace(time_ns=lambda: read(10**18), monotonic_ns=lambda: read(0))
    monkeypatch.setattr(spans, "time", clocks)
    assert spans._epoch_ns() == 10**18
