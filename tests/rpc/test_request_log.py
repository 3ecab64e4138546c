"""Which requests have a line in the log, and what it says."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from opara_protos.v1 import inference_pb2 as pb
from opara_server.rpc.transports import AIO, CQ
from tests.rpc.served import MODEL, PATIENCE_S, WORKER, Served, eventually, refused, request, serve
from tests.rpc.test_tracing import TRACE, Spans, metadata

TRANSPORTS = pytest.mark.parametrize("transport", [AIO, CQ, WORKER])
THEIRS = (("x-request-id", "theirs"),)


def lines(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name == "opara_server.observe.request_log"]


@TRANSPORTS
async def test_a_share_of_all_has_lines(models: Path, transport: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serve(models, transport=transport, log_requests=1.0) as served:
        await served.stub.Infer(request(1.0, 2.0, id="mine"), metadata=THEIRS, timeout=PATIENCE_S)
        await served.stub.Infer(request(1.0), metadata=THEIRS, timeout=PATIENCE_S)
        await refused(served.stub.Infer(request(1.0, model="nobody" * 100), timeout=PATIENCE_S))
    mine, theirs, wrong = lines(caplog)
    assert (mine.method, mine.model, mine.code, mine.rows) == ("/opara.v1.InferenceService/Infer", MODEL, "OK", 2)
    assert 0 < mine.seconds < PATIENCE_S
    assert [mine.request_id, theirs.request_id] == ["mine", "theirs"]
    assert (wrong.code, len(wrong.model), wrong.error[:8]) == ("NOT_FOUND", 128, "no model")
    assert {line.levelname for line in (mine, theirs, wrong)} == {"INFO"}
    assert not hasattr(wrong, "request_id")
    assert not hasattr(mine, "error")


@TRANSPORTS
async def test_faults_always_have_one(models: Path, transport: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serve(models, transport=transport) as served:
        await served.infer(1.0)
        await refused(served.stub.Infer(request(1.0, model="nobody"), timeout=PATIENCE_S))
        served.device.error = RuntimeError("secret")
        _, text = await refused(served.stub.Infer(request(1.0, id="mine"), timeout=PATIENCE_S))
    (line,) = lines(caplog)
    assert (line.levelname, line.code, line.request_id, line.error) == ("ERROR", "INTERNAL", "mine", text)
    assert [r.reference for r in caplog.records if r.message == "a batch failed"] == [text.rpartition(" ")[2]]  # type: ignore[attr-defined]


@TRANSPORTS
async def test_lines_of_sampled_requests_name_their_trace(
    models: Path, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    spans = Spans()
    async with serve(models, transport=transport, log_requests=1.0, tracer=spans.tracer) as served:
        await served.stub.Infer(request(1.0), metadata=metadata(), timeout=PATIENCE_S)
        await served.stub.Infer(request(1.0), metadata=metadata(sampled=False), timeout=PATIENCE_S)
    sampled, other = lines(caplog)
    await eventually(lambda: spans.requests)
    (span,) = spans.requests
    assert span.context is not None
    assert (sampled.trace_id, sampled.span_id) == (f"{TRACE:032x}", f"{span.context.span_id:016x}")
    assert not hasattr(other, "trace_id")


async def test_about_as_many_as_asked_for(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def ask(served: Served) -> None:
        messages = (pb.InferStreamRequest(request=request(float(n), id=str(n))) for n in range(500))
        assert len([a async for a in served.stub.InferStream(messages, timeout=PATIENCE_S)]) == 500

    async with serve(models, log_requests=0.3) as served:
        await asyncio.gather(ask(served), ask(served))
    assert 200 < len(lines(caplog)) < 400  # further off by chance than once in 10^11 times
