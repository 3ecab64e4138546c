"""ProfileModel: a trace on demand, for administrators."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from opara_protos.v1 import inference_pb2 as pb
from opara_server.rpc.transports import AIO, CQ
from tests.rpc.served import MODEL, PATIENCE_S, WORKER, Served, eventually, refused, serve


async def profiled(served: Served, batch_size: int = 0, model: str = MODEL) -> pb.ProfileModelResponse:
    asked = pb.ProfileModelRequest(model=model, batch_size=batch_size)
    return await served.stub.ProfileModel(asked, timeout=PATIENCE_S)


@pytest.mark.parametrize("transport", [AIO, CQ, WORKER])
async def test_all_batch_sizes_or_one_are_traced(models: Path, transport: str) -> None:
    async with serve(models, transport=transport, admin=True) as served:
        answer = await profiled(served)
        assert [bucket.batch_size for bucket in answer.buckets] == [1, 4, 8]
        (bucket,) = (await profiled(served, 4)).buckets
        assert (bucket.batch_size, bucket.replays, bucket.omitted) == (4, 10, 0)
        assert (bucket.span_us, bucket.concurrency) == (100.0, 1.5)
        assert dict(bucket.stream_busy) == {0: 1.0, 1: 0.5}
        assert dict(bucket.busy_us) == {0: 0.0, 1: 50.0, 2: 50.0}
        assert list(bucket.timeline) == [
            pb.Interval(name="first", stream=0, start_us=0.0, end_us=100.0),
            pb.Interval(name="second", stream=1, start_us=50.0, end_us=100.0),
        ]
        assert bucket.seconds > 0
        assert served.sample("opara_stream_sampling_seconds_total", model=MODEL) > 0
        assert await served.infer(1.0) == [2.0]


async def test_what_cannot_be_traced(models: Path) -> None:
    async with serve(models, admin=True) as served:
        code, _ = await refused(profiled(served, model="nobody"))
        assert code is grpc.StatusCode.NOT_FOUND
        code, text = await refused(profiled(served, 5))
        assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "model 'double' has no batch size 5: [1, 4, 8]")
        code, _ = await refused(profiled(served, -1))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        code, _ = await refused(served.raw("ProfileModel", b"\xff\xff"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_it_is_for_administrators_only(models: Path, tmp_path: Path) -> None:
    async with serve(models) as served:
        code, text = await refused(profiled(served))
        assert (code, "--admin" in text) == (grpc.StatusCode.UNIMPLEMENTED, True)
    (tmp_path / "admins").write_text("of-an-administrator\n")
    async with serve(models, admin=True, admin_token_file=tmp_path / "admins") as served:
        code, _ = await refused(profiled(served))
        assert code is grpc.StatusCode.UNAUTHENTICATED


async def test_streams_are_sampled_regularly_where_that_is_asked_for(models: Path) -> None:
    async with serve(models, sample_streams_every_s=0.01) as served:
        seen = served.device.log.count("trace 8")
        assert await served.infer(1.0) == [2.0]
        await eventually(lambda: served.device.log.count("trace 8") >= seen + 2)
        assert await served.infer(1.0) == [2.0]
