"""Infer, ListModels and GetModel over a real connection."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc
import numpy as np
import pytest

from opara_protos.v1 import inference_pb2 as pb
from opara_protos.v1.inference_pb2_grpc import InferenceServiceStub
from tests.rpc.served import MAX_QUEUE_ROWS, MAX_ROWS, MODEL, Served, doubled, eventually, request, serve, write_model

if TYPE_CHECKING:
    from opara_protos.v1.inference_pb2_grpc import InferenceServiceAsyncStub


async def code_of(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code(), caught.value.details() or ""


async def test_the_answer_has_the_rows_and_the_id(served: Served) -> None:
    response = await served.stub.Infer(request(1.0, 2.0, 3.0, id="abc", outputs=["y"]))
    assert (response.model, response.id) == (MODEL, "abc")
    assert doubled(response) == [2.0, 4.0, 6.0]
    assert served.sample("opara_requests_total", model=MODEL, code="OK") == 1


async def test_concurrent_requests_share_batches_and_keep_their_answers(served: Served) -> None:
    held = await served.hold()
    asked = [asyncio.create_task(served.infer(float(value))) for value in range(8)]
    await eventually(lambda: served.waiting() == 8)
    served.device.gate.set()
    assert await asyncio.gather(*asked) == [[2.0 * value] for value in range(8)]
    assert await held == [2.0]
    assert served.device.replays[-2:] == [1, 8]


async def test_not_a_number_stays_in_its_own_rows(served: Served) -> None:
    held = await served.hold()
    asked = [asyncio.create_task(served.infer(value)) for value in (1.0, float("nan"), 3.0)]
    await eventually(lambda: served.waiting() == 3)
    served.device.gate.set()
    first, second, third = await asyncio.gather(*asked)
    assert (first, third) == ([2.0], [6.0])
    assert np.isnan(second).all()
    await held


@pytest.mark.parametrize("method", ["Infer", "GetModel", "ListModels"])
async def test_bytes_that_are_no_message_are_invalid(served: Served, method: str) -> None:
    code, text = await code_of(served.raw(method, b"\xff\xff\xff"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text == f"the bytes are no opara.v1.{method}Request"
    assert await served.infer(1.0) == [2.0]


@pytest.mark.parametrize("name", ["nobody", "", "../double", "n" * 60_000])
async def test_an_unknown_model_is_not_found(served: Served, name: str) -> None:
    code, text = await code_of(served.stub.Infer(request(1.0, model=name)))
    assert code is grpc.StatusCode.NOT_FOUND
    assert len(text) < 200
    code, _ = await code_of(served.stub.GetModel(pb.GetModelRequest(model=name)))
    assert code is grpc.StatusCode.NOT_FOUND
    assert served.sample("opara_requests_total", model="(unknown)", code="NOT_FOUND") == 1


async def test_more_rows_than_one_request_may_have(served: Served) -> None:
    code, text = await code_of(served.stub.Infer(request(*range(MAX_ROWS + 1))))
    assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "input 'x': expected 1 to 16 rows, got 17")
    assert await served.infer(*range(MAX_ROWS)) == [2.0 * value for value in range(MAX_ROWS)]


async def test_a_failing_batch_tells_nothing_of_the_inside(served: Served) -> None:
    served.device.error = RuntimeError("secret in /etc/passwd")
    code, text = await code_of(served.infer(1.0))
    assert code is grpc.StatusCode.INTERNAL
    assert re.fullmatch(r"internal error [0-9a-f]+", text)
    served.device.error = None
    assert await served.infer(1.0) == [2.0]


async def test_a_full_queue_is_exhausted_and_recovers(served: Served) -> None:
    held = await served.hold()
    values = [float(value) for value in range(MAX_ROWS)]
    asked = [asyncio.create_task(served.infer(*values)) for _ in range(MAX_QUEUE_ROWS // MAX_ROWS)]
    await eventually(lambda: served.waiting() == MAX_QUEUE_ROWS)
    code, text = await code_of(served.infer(1.0))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "queue is full" in text
    served.device.gate.set()
    assert await asyncio.gather(*asked) == [[2.0 * value for value in values]] * len(asked)
    assert await held == [2.0]
    assert await served.infer(5.0) == [10.0]


async def test_what_is_late_is_not_executed(served: Served) -> None:
    held = await served.hold()
    assert await served.late(7.0) is grpc.StatusCode.DEADLINE_EXCEEDED
    served.device.gate.set()
    await held
    assert await served.infer(1.0) == [2.0]
    assert served.sample("opara_rows_total", model=MODEL) == 2  # the held one and the last one


async def test_a_deadline_in_the_past(served: Served) -> None:
    code, _ = await code_of(served.infer(1.0, timeout=-1.0))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await served.infer(1.0) == [2.0]
    assert served.sample("opara_rows_total", model=MODEL) == 1


async def test_a_client_that_is_gone_frees_its_place(served: Served) -> None:
    held = await served.hold()
    gone = [asyncio.create_task(served.infer(7.0, 8.0)) for _ in range(3)]
    await eventually(lambda: served.waiting() == 6)
    for call in gone:
        call.cancel()
    await eventually(lambda: served.waiting() == 0)
    await eventually(lambda: served.sample("opara_requests_total", model=MODEL, code="CANCELLED") == 3)
    served.device.gate.set()
    await held
    assert await served.infer(1.0) == [2.0]
    assert served.sample("opara_rows_total", model=MODEL) == 2


async def test_a_connection_that_breaks_frees_its_places(served: Served) -> None:
    held = await served.hold()
    async with grpc.aio.insecure_channel(served.app.grpc_address) as channel:
        call = cast("InferenceServiceAsyncStub", InferenceServiceStub(channel)).Infer(request(7.0))
        await eventually(lambda: served.waiting() == 1)
    assert call.cancelled()
    await eventually(lambda: served.waiting() == 0)
    served.device.gate.set()
    await held


async def test_a_message_over_the_limit_is_refused(served: Served) -> None:
    too_long = request(1.0, id="i" * (70 * 1024))
    code, _ = await code_of(served.stub.Infer(too_long))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await served.infer(1.0) == [2.0]


async def test_a_bomb_of_zeros_is_refused(served: Served) -> None:
    """A message is measured as it unfolds, not as it travels."""
    bomb = request(1.0, id="i" * 50_000_000)
    code, _ = await code_of(served.stub.Infer(bomb, compression=grpc.Compression.Gzip))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await served.infer(1.0) == [2.0]


async def test_models_and_what_they_are(served: Served) -> None:
    models = (await served.stub.ListModels(pb.ListModelsRequest())).models
    assert [(model.name, model.state) for model in models] == [(MODEL, pb.MODEL_STATE_READY)]
    model = await served.stub.GetModel(pb.GetModelRequest(model=MODEL))
    assert list(model.inputs) == [pb.TensorSpec(name="x", data_type=pb.DATA_TYPE_FLOAT32, shape=(-1, 2))]
    assert [spec.name for spec in model.outputs] == ["y"]
    assert (model.device, model.device_name, model.max_rows) == ("cpu", "fake", MAX_ROWS)
    assert [bucket.batch_size for bucket in model.buckets] == [1, 4, 8]
    assert (model.buckets[0].policy, model.buckets[0].streams, model.buckets[0].measured_us) == ("opara", 2, 10.0)


async def test_a_failed_model_is_unavailable_and_the_others_serve(tmp_path: Path, transport: str) -> None:
    models = write_model(tmp_path / "models")
    write_model(models, "broken", 'source = "python:nowhere:at_all"\nspeed = "high"')
    async with serve(models, transport=transport) as served:
        assert await served.infer(1.0) == [2.0]
        code, text = await code_of(served.stub.Infer(request(1.0, model="broken")))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert str(models) not in text
        found = await served.stub.GetModel(pb.GetModelRequest(model="broken"))
        assert found.status.state == pb.MODEL_STATE_FAILED
        assert found.status.reason == "its name or its model.toml cannot be used"
        listed = (await served.stub.ListModels(pb.ListModelsRequest())).models
        assert [(model.name, model.reason) for model in listed] == [("broken", found.status.reason), (MODEL, "")]
        assert not found.buckets
