"""The spans of requests, however they come: by each transport, and by a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client.openmetrics.exposition import generate_latest

from opara_protos.v1 import inference_pb2 as pb
from opara_server.observe.sampling import ALL, Sampling
from opara_server.observe.spans import OtelTracer
from opara_server.rpc.transports import AIO, CQ
from tests.rpc.served import MODEL, PATIENCE_S, WORKER, Served, doubled, eventually, refused, request, serve

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
PARTS = ["queue", "fill", "copy in", "replay", "copy out"]


def metadata(*, sampled: bool = True, **headers: str) -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{TRACE:032x}-{PARENT:016x}-0{sampled:d}"), *headers.items())


class Spans:
    """What a tracer has sent."""

    def __init__(self, bound: int = ALL) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer = OtelTracer([SimpleSpanProcessor(self._exporter)], Sampling(bound))

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    @property
    def requests(self) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.kind is SpanKind.SERVER]

    def children(self, parent: ReadableSpan) -> list[ReadableSpan]:
        found = (s for s in self._exporter.get_finished_spans() if s.parent and s.parent.span_id == key(parent)[1])
        return sorted(found, key=lambda span: span.start_time or 0)


def key(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def linked(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture(params=[AIO, CQ, WORKER])
async def traced(models: Path, spans: Spans, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    async with serve(models, transport=request.param, tracer=spans.tracer) as served:
        yield served


async def test_a_request_has_a_span_with_its_parts_in_its_callers_trace(traced: Served, spans: Spans) -> None:
    await traced.stub.Infer(request(1.0, 2.0, id="mine"), metadata=metadata(tracestate="a=1,b=2"), timeout=PATIENCE_S)
    await eventually(lambda: spans.requests and spans.named("copy out"))
    (span,) = spans.requests
    assert span.name == "opara.v1.InferenceService/Infer"
    assert key(span)[0] == TRACE
    assert span.parent is not None
    assert span.parent.span_id == PARENT
    assert span.parent.is_remote
    assert dict(span.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "opara.v1.InferenceService",
        "rpc.method": "Infer",
        "rpc.grpc.status_code": 0,
        "opara.model": MODEL,
        "opara.rows": 2,
        "opara.request_id": "mine",
    }
    assert span.status.status_code is StatusCode.UNSET
    parts = spans.children(span)
    assert sorted(part.name for part in parts) == sorted(PARTS)
    for one in (span, *parts):
        assert one.context is not None
        assert (one.context.trace_id, one.context.trace_state.to_header()) == (TRACE, "a=1,b=2")


async def test_parts_follow_each_other_within_the_request(traced: Served, spans: Spans) -> None:
    await traced.infer(1.0)
    await eventually(lambda: spans.requests and spans.named("copy out"))
    (span,) = spans.requests
    by_name = {part.name: part for part in spans.children(span)}
    times = [time for name in PARTS for time in (by_name[name].start_time, by_name[name].end_time)]
    in_order = [time or 0 for time in (span.start_time, *times, span.end_time)]
    assert in_order == sorted(in_order)


async def test_a_batch_is_a_span_of_its_own_linked_with_its_requests(traced: Served, spans: Spans) -> None:
    held = await traced.hold()
    together = [asyncio.create_task(traced.infer(float(number))) for number in range(3)]
    await eventually(lambda: traced.waiting() == 3)
    traced.device.gate.set()
    await asyncio.gather(held, *together)
    await eventually(lambda: len(spans.requests) == 4 and len(spans.named("copy out")) == 4)
    first, batch = spans.named("batch")
    assert dict(batch.attributes or {}) == {
        "opara.model": MODEL,
        "opara.batch.size": 4,
        "opara.batch.rows": 3,
        "opara.batch.requests": 3,
    }
    assert batch.parent is None
    assert len(linked(first)) == 1
    assert sorted([*linked(first), *linked(batch)]) == sorted(map(key, spans.requests))
    assert len({trace_id for trace_id, _ in map(key, spans.requests)}) == 4
    replays = spans.named("replay")
    assert sorted(linked(replay)[0] for replay in replays) == sorted([key(first), *[key(batch)] * 3])


async def test_a_request_in_two_batches_waits_once(traced: Served, spans: Spans) -> None:
    await traced.infer(*map(float, range(12)))  # the largest batch has 8
    await eventually(lambda: spans.requests and len(spans.named("copy out")) == 2)
    assert len(spans.named("queue")) == 1
    assert len(spans.named("batch")) == 2
    assert [part.name for part in spans.children(spans.requests[0])].count("replay") == 2


async def test_a_message_of_a_stream_has_a_span_in_the_streams_trace(traced: Served, spans: Spans) -> None:
    messages = [pb.InferStreamRequest(request=request(float(number), id=str(number))) for number in range(3)]
    messages.append(pb.InferStreamRequest(request=request(1.0, model="nobody", id="wrong")))
    answers = [a async for a in traced.stub.InferStream(iter(messages), metadata=metadata(), timeout=PATIENCE_S)]
    assert len(answers) == 4
    await eventually(lambda: len(spans.requests) == 4 and len(spans.named("copy out")) == 3)
    assert {span.name for span in spans.requests} == {"opara.v1.InferenceService/InferStream"}
    assert {key(span)[0] for span in spans.requests} == {TRACE}
    codes = {
        s.attributes["opara.request_id"]: s.attributes["rpc.grpc.status_code"] for s in spans.requests if s.attributes
    }
    assert codes == {"0": 0, "1": 0, "2": 0, "wrong": grpc.StatusCode.NOT_FOUND.value[0]}


async def test_a_caller_that_is_not_sampled_leaves_nothing(traced: Served, spans: Spans) -> None:
    await traced.stub.Infer(request(1.0), metadata=metadata(sampled=False), timeout=PATIENCE_S)
    await traced.stub.Infer(request(2.0, id="other"), timeout=PATIENCE_S)
    await eventually(lambda: spans.requests and spans.named("copy out"))
    (span,) = spans.requests
    assert span.attributes is not None
    assert span.attributes["opara.request_id"] == "other"
    assert len(spans.named("batch")) == 1


async def test_without_a_caller_that_is_sampled_the_root_decides(models: Path, transport: str) -> None:
    spans = Spans(bound=0)
    async with serve(models, transport=transport, tracer=spans.tracer) as served:
        await served.infer(1.0)
        await served.stub.Infer(request(2.0), metadata=metadata(), timeout=PATIENCE_S)
        await eventually(lambda: spans.requests and spans.named("copy out"))
    assert [key(span)[0] for span in spans.requests] == [TRACE]


@pytest.mark.parametrize("parent", ["", "00-zz-1-01", f"00-{0:032x}-{1:016x}-01", "00-" + "f" * 4000])
async def test_a_parent_that_cannot_be_read_is_none(traced: Served, spans: Spans, parent: str) -> None:
    headers = (("traceparent", parent), ("tracestate", "=,;"))
    response = await traced.stub.Infer(request(1.0), metadata=headers, timeout=PATIENCE_S)
    assert doubled(response) == [2.0]
    await eventually(lambda: spans.requests)
    assert spans.requests[0].parent is None


async def test_what_fails_says_so_in_its_span(traced: Served, spans: Spans) -> None:
    await refused(traced.stub.Infer(request(1.0, model="nobody"), timeout=PATIENCE_S))
    traced.device.error = RuntimeError("secret")
    _, text = await refused(traced.stub.Infer(request(1.0), metadata=(("x-request-id", "theirs"),), timeout=PATIENCE_S))
    await eventually(lambda: len(spans.requests) == 2 and spans.named("batch"))
    mistake, fault = spans.requests
    assert mistake.status.status_code is StatusCode.UNSET
    assert fault.status.status_code is StatusCode.ERROR
    assert fault.status.description == text
    assert fault.attributes is not None
    assert fault.attributes["opara.request_id"] == "theirs"
    (batch,) = spans.named("batch")
    assert batch.status.status_code is StatusCode.ERROR
    assert linked(batch) == [key(fault)]


async def test_latencies_have_exemplars_of_sampled_requests(traced: Served, spans: Spans) -> None:
    await traced.infer(1.0)
    await eventually(lambda: spans.requests and spans.named("copy out"))
    (span,) = spans.requests
    name = f'# {{trace_id="{key(span)[0]:032x}"}}'

    def exemplified() -> set[str]:
        text = generate_latest(traced.app.metrics.registry).decode()  # type: ignore[no-untyped-call]
        return {line.partition("_bucket")[0] for line in text.splitlines() if name in line}

    seconds = ("request", "queue", "copy_in", "replay", "copy_out")
    await eventually(lambda: len(exemplified()) >= len(seconds))  # those of a batch come last of all
    assert exemplified() == {f"opara_{what}_seconds" for what in seconds}


async def test_spans_that_are_there_at_the_end_are_sent(models: Path, spans: Spans, transport: str) -> None:
    async with serve(models, transport=transport, tracer=spans.tracer) as served:
        await asyncio.gather(*[served.infer(float(number)) for number in range(20)])
    # Already, unless this machine is so slow that the server has ended without waiting for them any longer.
    await eventually(lambda: len(spans.requests) == len(spans.named("replay")) == 20)
