"""Spans of a server with workers on their way to a collector, and one line in the log for each thing that happens."""

from __future__ import annotations

import json
from pathlib import Path

import grpc

from opara_protos.v1.inference_pb2_grpc import InferenceServiceStub
from tests.e2e.server_process import PATIENCE_S, running
from tests.e2e.test_workers import request
from tests.otlp import grpc_receiver

PARTS = ["copy in", "copy out", "fill", "queue", "replay"]
TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


def test_a_worker_and_the_engine_tell_of_the_same_request(small: Path, tmp_path: Path) -> None:
    with grpc_receiver() as received:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint,
            "OTEL_TRACES_SAMPLER": "parentbased_always_off",
            "OTEL_SERVICE_NAME": "small",
            "OTEL_BSP_SCHEDULE_DELAY": "100",  # milliseconds
        }
        options = ("--workers=1", "--tracing", "--log-format=json", "--log-requests=1")
        with (
            running(small, *options, variables=variables) as server,
            grpc.insecure_channel(server.grpc) as channel,
        ):
            stub = InferenceServiceStub(channel)
            sampled = (("traceparent", f"00-{TRACE:032x}-{PARENT:016x}-01"), ("tracestate", "a=1"))
            for metadata in (sampled, ()):
                stub.Infer(request(1.0), metadata=metadata, timeout=PATIENCE_S)
            for name in ("opara.v1.InferenceService/Infer", "batch", *PARTS):
                received.wait_for(name, 1)  # a server that stops tries for three seconds to send them, and no longer
            assert server.stop() == 0
    (asked,) = received.named("opara.v1.InferenceService/Infer")
    parts = [span for span in received.spans if span.parent_span_id == asked.span_id]
    assert sorted(part.name for part in parts) == PARTS
    assert {span.trace_id for span in (asked, *parts)} == {TRACE.to_bytes(16)}
    assert {span.trace_state for span in (asked, *parts)} == {"a=1"}
    assert asked.parent_span_id == PARENT.to_bytes(8)
    (batch,) = received.named("batch")
    assert [link.span_id for link in batch.links] == [asked.span_id]
    assert asked.start_time_unix_nano <= min(part.start_time_unix_nano for part in parts)
    assert {sender["service.name"] for sender in received.resources} == {"small"}
    lines = [json.loads(line) for line in (tmp_path / "server.log").read_text().splitlines()]
    said = {(line.get("role", ""), line["message"]) for line in lines}
    assert said >= {("", "starting"), ("", "ready"), ("", "draining"), ("", "drained"), ("", "stopped")}
    assert said >= {("engine", "model loaded"), ("engine", "model READY"), ("worker", "requests are traced")}
    assert [line.get("trace_id") for line in lines if line["message"] == "request"] == [f"{TRACE:032x}", None]
