"""The trace that a caller is in goes with its calls."""

from __future__ import annotations

import sys
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, client_interceptor
from opentelemetry.instrumentation.grpc.grpcext import intercept_channel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind

from opara_client import AsyncOparaClient, InferRequest, NotFound, OparaClient
from tests.client.fake_server import FakeServer

X = np.ones((1, 2), np.float32)
TRACER = TracerProvider(shutdown_on_exit=False).get_tracer("test")


def sent(server: FakeServer) -> list[str | bytes]:
    return [value for name, value in server.seen.metadata if name == "traceparent"]


def header(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def test_the_current_span_is_the_servers_parent(server: FakeServer) -> None:
    with OparaClient(server.target, token="secret") as client, TRACER.start_as_current_span("caller") as span:
        client.infer("double", {"x": X})
        assert sent(server) == [header(span.get_span_context())]
        assert ("authorization", "Bearer secret") in server.seen.metadata
        server.seen.metadata.clear()
        assert list(client.infer_stream([InferRequest("double", {"x": X})]))
        assert sent(server) == [header(span.get_span_context())]


async def test_of_a_task_too(server: FakeServer) -> None:
    async with AsyncOparaClient(server.target) as client:
        with TRACER.start_as_current_span("caller") as span:
            await client.infer("double", {"x": X})
            assert sent(server) == [header(span.get_span_context())]
            server.seen.metadata.clear()
            assert [answer async for answer in client.infer_stream([InferRequest("double", {"x": X})])]
            assert sent(server) == [header(span.get_span_context())]


def test_outside_of_a_trace_nothing_goes_along(client: OparaClient, server: FakeServer) -> None:
    client.infer("double", {"x": X})
    assert not sent(server)


def test_without_opentelemetry_calls_are_what_they_were(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with OparaClient(server.target) as client, TRACER.start_as_current_span("caller"):
        client.infer("double", {"x": X})
    assert not sent(server)


class Kept(InMemorySpanExporter):
    """What the client's own instrumentation makes; ``provider``: that it makes it with."""

    def __init__(self) -> None:
        super().__init__()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self))

    def span_of(self, method: str) -> SpanContext:
        found = [s for s in self.get_finished_spans() if s.kind is SpanKind.CLIENT and s.name.endswith(f"/{method}")]
        assert len(found) == 1
        context = found[0].get_span_context()
        assert context is not None
        return context


def test_grpcs_instrumentation_works_with_the_client(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own span is the server's parent then. (Its instrumentor does the same, with the provider of the process.)"""
    kept, open_channel = Kept(), grpc.insecure_channel

    def intercepted(*arguments: Any) -> grpc.Channel:
        channel: grpc.Channel = intercept_channel(  # type: ignore[no-untyped-call]
            open_channel(*arguments),
            client_interceptor(kept.provider),  # type: ignore[no-untyped-call]
        )
        return channel

    monkeypatch.setattr(grpc, "insecure_channel", intercepted)
    with OparaClient(server.target) as client:
        with TRACER.start_as_current_span("caller"):
            client.infer("double", {"x": X})
        assert sent(server) == [header(kept.span_of("Infer"))]
        with pytest.raises(NotFound):
            client.infer("nobody", {"x": X})
        assert list(client.infer_stream([InferRequest("double", {"x": X})]))


async def test_grpcs_asyncio_instrumentation_works_with_the_client(server: FakeServer) -> None:
    kept, instrumentor = Kept(), GrpcAioInstrumentorClient()  # type: ignore[no-untyped-call]
    instrumentor.instrument(tracer_provider=kept.provider)
    try:
        async with AsyncOparaClient(server.target) as client:
            with TRACER.start_as_current_span("caller"):
                await client.infer("double", {"x": X})
            assert sent(server)[-1] == header(kept.span_of("Infer"))
            with pytest.raises(NotFound):
                await client.infer("nobody", {"x": X})
            assert [answer async for answer in client.infer_stream([InferRequest("double", {"x": X})])]
    finally:
        instrumentor.uninstrument()
