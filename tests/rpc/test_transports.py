"""What clients may do to a call, and servers to their clients, on either transport."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from opara_protos.v1 import inference_pb2 as pb
from opara_server.rpc import cq_core, cq_trial
from opara_server.rpc.cq_server import CqServer
from opara_server.rpc.edge import Edge
from opara_server.rpc.forms import Rejected
from opara_server.rpc.opara_codec import OparaCodec
from opara_server.rpc.transports import CQ, AioTransport, open_transport
from opara_server.serving.batcher import Batcher
from opara_server.serving.errors import InternalError, ServingError, Status
from opara_server.workers.caller import RemoteQueue
from tests.rpc.served import MAX_QUEUE_ROWS, MODEL, PATIENCE_S, Served, doubled, eventually, refused, request, serve

INFER = "/opara.v1.InferenceService/Infer"
OVER = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


async def settled(served: Served, code: str, count: int = 1) -> None:
    await eventually(lambda: served.sample("opara_requests_total", model=MODEL, code=code) == count)


async def test_a_cancelled_call_frees_its_place(served: Served) -> None:
    held = await served.hold()
    waiting = served.stub.Infer(request(1.0))
    await eventually(lambda: served.waiting() == 1)
    waiting.cancel()
    await eventually(lambda: served.waiting() == 0)
    await settled(served, "CANCELLED")
    served.device.gate.set()
    assert await held == [2.0]
    assert await served.infer(3.0) == [6.0]


async def test_a_deadline_that_passes_in_the_queue_frees_its_place(served: Served) -> None:
    held = await served.hold()
    assert await served.late(1.0) is grpc.StatusCode.DEADLINE_EXCEEDED
    served.device.gate.set()
    assert await held == [2.0]


async def test_a_connection_that_breaks_frees_all_its_places(served: Served) -> None:
    held = await served.hold()
    async with grpc.aio.insecure_channel(served.app.grpc_address) as channel:
        call: Any = channel.unary_unary(INFER, None, None)
        calls = [call(request(1.0).SerializeToString()) for _ in range(5)]
        gathered = asyncio.gather(*calls, return_exceptions=True)
        await eventually(lambda: served.waiting() == 5)
    await gathered
    await settled(served, "CANCELLED", 5)
    served.device.gate.set()
    assert await held == [2.0]


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests_are_read(served: Served, compression: grpc.Compression) -> None:
    response = await served.stub.Infer(request(1.0), compression=compression)
    assert doubled(response) == [2.0]


async def test_a_message_over_the_limit_is_exhausted(served: Served) -> None:
    call: Any = served.channel.unary_unary(INFER, None, None)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(bytes(1 << 20), timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await served.infer(1.0) == [2.0]


async def test_a_fault_of_ours_is_answered_and_tells_nothing_of_the_inside(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object) -> None:
        raise RuntimeError("secret")

    with monkeypatch.context() as patched:
        patched.setattr(OparaCodec, "read", broken)
        patched.setattr(OparaCodec, "read_streamed", broken)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.infer(1.0)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert re.fullmatch("internal error [0-9a-f]+", caught.value.details() or "")
        open_stream: Any = served.channel.stream_stream("/opara.v1.InferenceService/InferStream", None, None)
        stream = open_stream(timeout=PATIENCE_S)
        await stream.write(b"")
        answer = pb.InferStreamResponse.FromString(await stream.read())
        assert answer.error.code == grpc.StatusCode.INTERNAL.value[0]
    await stream.write(pb.InferStreamRequest(request=request(2.0)).SerializeToString())
    assert doubled(pb.InferStreamResponse.FromString(await stream.read()).response) == [4.0]
    assert served.sample("opara_requests_total", model="(unknown)", code="INTERNAL") == 2


async def test_a_request_that_cannot_be_queued_is_answered_and_the_next_is_served(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise RuntimeError("secret")

    open_stream: Any = served.channel.stream_stream("/opara.v1.InferenceService/InferStream", None, None)
    stream = open_stream(timeout=PATIENCE_S)
    asked = pb.InferStreamRequest(request=request(2.0)).SerializeToString()
    with monkeypatch.context() as patched:
        for queue in (Batcher, RemoteQueue):
            patched.setattr(queue, "submit", broken)
        code, text = await refused(served.infer(1.0))
        assert code is grpc.StatusCode.INTERNAL
        assert re.fullmatch("internal error [0-9a-f]+", text)
        await stream.write(asked)
        answer = pb.InferStreamResponse.FromString(await stream.read())
        assert answer.error.code == grpc.StatusCode.INTERNAL.value[0]
    await stream.write(asked)
    assert doubled(pb.InferStreamResponse.FromString(await stream.read()).response) == [4.0]
    assert served.sample("opara_requests_total", model=MODEL, code="INTERNAL") == 2


async def test_every_error_arrives_with_its_code_and_text(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_codec: object, message: bytes) -> Rejected:
        kind = kinds[int(message)]
        return Rejected(kind(f"caf\xe9 100% {message.decode()}"))

    kinds = [kind for kind in ServingError.__subclasses__() if kind is not InternalError]
    assert {kind.status for kind in kinds} | {Status.OK, Status.INTERNAL} == set(Status)
    monkeypatch.setattr(OparaCodec, "read", read)
    for number, kind in enumerate(kinds):
        code, text = await refused(served.raw("Infer", str(number).encode()))
        assert (code.name, text) == (kind.status, f"caf\xe9 100% {number}")


async def test_metadata_of_a_clients_own_is_no_error(served: Served) -> None:
    metadata = (("x-text", "a value"), ("x-bytes-bin", bytes(range(256))), ("x-long", "x" * 4000))
    call = served.stub.Infer(request(1.0), metadata=metadata, timeout=PATIENCE_S)
    assert doubled(await call) == [2.0]
    assert not [name for name, _ in (*await call.initial_metadata(), *await call.trailing_metadata()) if name[0] == "x"]


async def test_metadata_over_the_limit_is_refused(served: Served) -> None:
    long = (("x-long", "x" * 100_000),)
    code, _ = await refused(served.stub.Infer(request(1.0), metadata=long, timeout=PATIENCE_S))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await served.infer(1.0) == [2.0]


async def test_methods_and_services_that_are_not_there(served: Served) -> None:
    for path in ("/opara.v1.InferenceService/Explode", "/no.Service/Infer", "/"):
        call: Any = served.channel.unary_unary(path, None, None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_unary_call_without_a_request_is_answered(models: Path) -> None:
    """grpc.aio leaves such a client waiting until its own deadline."""
    nothing: list[bytes] = []
    async with serve(models, transport=CQ) as served:
        for path in (INFER, "/opara.v1.InferenceService/ListModels"):
            call: Any = served.channel.stream_unary(path, None, None)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(nothing, timeout=PATIENCE_S)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert await served.infer(1.0) == [2.0]


async def test_health_is_checked_and_watched(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=MODEL), timeout=PATIENCE_S)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    served.app._front.set(MODEL, serving=False)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    assert await served.health() == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.health("nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    "method",
    [
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
async def test_bytes_that_probes_and_tools_do_not_send_are_invalid(
    served: Served, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    call: Any = served.channel.stream_stream(f"/{method}", None, None)
    code, text = await refused(call([b"\xff"], timeout=PATIENCE_S).read())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert re.fullmatch(r"the bytes are no grpc\.[\w.]+Request", text)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_name_of_any_length_has_no_health(served: Served) -> None:
    """Uncut it would be larger than the headers that a client takes."""
    assert await refused(served.health("n" * 20_000)) == (
        grpc.StatusCode.NOT_FOUND,
        f"no model or service '{'n' * 45}...'",
    )


async def test_reflection_lists_the_services(served: Served) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    answers = [answer async for answer in stub.ServerReflectionInfo(asked, timeout=PATIENCE_S)]
    names = {service.name for service in answers[0].list_services_response.service}
    assert {"opara.v1.InferenceService", "grpc.health.v1.Health"} <= names


async def test_many_callers_each_get_their_own_answer(served: Served) -> None:
    callers = asyncio.Semaphore(MAX_QUEUE_ROWS)

    async def ask(number: int) -> bool:
        async with callers:
            return await served.infer(float(number)) == [2.0 * number]

    assert all(await asyncio.gather(*[ask(number) for number in range(500)]))
    assert served.sample("opara_requests_total", model=MODEL, code="OK") == 500


async def test_stopping_it_finishes_what_is_in_flight_and_takes_no_more(models: Path, transport: str) -> None:
    async with serve(models, transport=transport) as served:
        held = await served.hold()
        stopping = asyncio.create_task(served.app.stop())
        late: list[asyncio.Task[list[float]]] = []

        async def shut() -> bool:
            """Whether a call is refused: those that were let in wait at the gate."""
            late.append(asyncio.create_task(served.infer(1.0)))
            done, _ = await asyncio.wait(late, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
            return bool(done)

        await eventually(shut)
        assert not stopping.done()
        served.device.gate.set()
        assert await held == [2.0]
        for end in await asyncio.gather(*late, return_exceptions=True):
            assert end == [2.0] or (isinstance(end, grpc.aio.AioRpcError) and end.code() in OVER)
        await stopping


async def test_what_outlasts_the_grace_is_cancelled(models: Path, transport: str) -> None:
    async with serve(models, transport=transport, grace_s=0.2) as served:
        held = await served.hold()
        stopping = asyncio.create_task(served.app.stop())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await held
        assert caught.value.code() in OVER
        served.device.gate.set()
        await stopping


async def test_a_grpcio_without_the_private_layer_serves_with_asyncio(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inference: Any = SimpleNamespace(unary={}, streams={})
    transport = open_transport(CQ, Edge(()), inference, 1)
    assert isinstance(transport, CqServer)
    monkeypatch.setattr(cq_core, "cygrpc", object())
    assert isinstance(open_transport(CQ, Edge(()), inference, 1), AioTransport)
    assert "serving with grpc.aio: grpcio" in caplog.text


async def test_a_grpcio_that_was_not_tested_serves_as_ever_if_it_passes_a_trial(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inference: Any = SimpleNamespace(unary={}, streams={})
    monkeypatch.setattr(cq_core, "TESTED", ("0.1", "0.2"))
    assert isinstance(open_transport(CQ, Edge(()), inference, 1), CqServer)
    assert not caplog.records
    monkeypatch.setattr(cq_core, "method_of", lambda _: b"/of/another")
    assert isinstance(open_transport(CQ, Edge(()), inference, 1), AioTransport)
    assert f"grpcio {grpc.__version__}, of which 0.1 to 0.2 are tested, failed a trial: _TrialError" in caplog.text


@pytest.mark.parametrize(("first", "last", "tested"), [("1.0", "99.0", True), ("99.0", "99.1", False)])
def test_versions_are_compared_as_numbers(first: str, last: str, tested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cq_core, "TESTED", (first, last))
    assert cq_core.is_tested() == tested


def test_what_makes_a_trial_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not cq_trial.why_not()
    with monkeypatch.context() as changed:
        changed.setattr(cq_core, "send_only", lambda *_, **__: None)
        assert "failed a trial" in cq_trial.why_not(patience_s=0.1)
    with monkeypatch.context() as changed:
        changed.setattr(cq_core, "message_of", lambda _: b"another")
        assert "the answer was b'rehtona'" in cq_trial.why_not()
    with monkeypatch.context() as changed:
        changed.setattr("grpc._cython.cygrpc.SendStatusFromServerOperation", lambda: None)
        assert "TypeError" in cq_trial.why_not()


async def test_unknown_fields_of_a_message_are_no_error(served: Served) -> None:
    message = request(1.0).SerializeToString() + b"\xa2\x06\x03new"  # field 100
    call: Any = served.channel.unary_unary(INFER, None, pb.InferResponse.FromString)
    assert doubled(await call(message, timeout=PATIENCE_S)) == [2.0]
