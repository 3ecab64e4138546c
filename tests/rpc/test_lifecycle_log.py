"""One line in the log for each thing that happens to a server."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from opara_protos.v1 import inference_pb2 as pb
from tests.rpc.served import MODEL, PATIENCE_S, Served, refused, request, serve, write_model

THEIRS = (("x-request-id", "theirs"),)
SAID = ("listening", "model loaded", "model READY", "ready", "draining", "drained", "model UNLOADED", "stopped")


async def test_from_the_start_to_the_end(models: Path, transport: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_model(models, "other")
    async with serve(models, transport=transport) as served:
        addresses = served.app.grpc_address, served.app.metrics_address
    lines = [record for record in caplog.records if record.levelno == logging.INFO]
    said = [record.message for record in lines]
    twice = ["model loaded", "model READY", "model UNLOADED"]  # a line for each model
    assert said == [message for message in SAID for _ in range(1 + (message in twice))]
    fields = {record.message: vars(record) for record in lines}
    assert (fields["ready"]["grpc"], fields["ready"]["metrics"]) == addresses
    assert fields["model loaded"]["policies"].keys() == {1, 4, 8}
    assert fields["model loaded"]["speedups"].keys() == {1, 4, 8}
    assert {vars(record)["model"] for record in lines if record.message == "model READY"} == {MODEL, "other"}


async def test_a_fault_names_the_call(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("opara_server.rpc.opara_codec.OparaCodec.read", broken)
    _, text = await refused(served.stub.Infer(request(1.0), metadata=THEIRS, timeout=PATIENCE_S))
    fault, line = (vars(record) for record in caplog.records if record.levelno == logging.ERROR)
    assert text.endswith(fault["reference"])
    assert (fault["request_id"], line["request_id"], line["error"]) == ("theirs", "theirs", text)
    assert "secret" in str(fault["exc_info"][1])


async def test_a_fault_of_a_call_about_models_does_too(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(served.app._registry, "models", None)
        _, text = await refused(served.stub.ListModels(pb.ListModelsRequest(), metadata=THEIRS, timeout=PATIENCE_S))
    (fault,) = (vars(record) for record in caplog.records if record.levelno == logging.ERROR)
    assert text.endswith(fault["reference"])
    assert fault["request_id"] == "theirs"
    assert "'NoneType' object is not callable" in str(fault["exc_info"][1])
