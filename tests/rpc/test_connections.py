"""What becomes of connections: their age, their pings, their limits, and clients that are gone in mid-message."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise, product
from pathlib import Path

import grpc
import pytest

from opara_protos.v1 import inference_pb2 as pb
from opara_server.rpc.front import LocalFront
from tests.rpc.raw_http2 import (
    COMPRESSED,
    ENHANCE_YOUR_CALM,
    MAX_CONCURRENT_STREAMS,
    NO_ERROR,
    PATIENCE_S,
    PING,
    REFUSED_STREAM,
    framed,
    raw_connection,
)
from tests.rpc.served import MODEL, Served, channel_to, eventually, refused, request, serve
from tests.serving.fakes import Answer, doubled, rows_of

INFER = "/opara.v1.InferenceService/Infer"
INFER_STREAM = "/opara.v1.InferenceService/InferStream"
LIST_MODELS = "/opara.v1.InferenceService/ListModels"
MESSAGE = framed(request(1.0).SerializeToString())
PART = framed(bytes(60_000))[:50_000]


async def test_a_client_that_pings_too_often_is_told_so_and_disconnected(served: Served) -> None:
    async with raw_connection(served.app.grpc_address) as raw:
        # It tells so: what a server has not read when it closes is an RST, which takes its words along.
        await raw.settings()
        await raw.send(*[PING] * 4)  # one is welcome, two are overlooked
        told = await raw.told_to_go()
        assert (told.error_code, told.additional_data) == (ENHANCE_YOUR_CALM, b"too_many_pings")
    assert await served.infer(1.0) == [2.0]


async def test_pings_as_far_apart_as_is_asked_are_welcome_without_calls_too(models: Path, transport: str) -> None:
    async def ping(served: Served) -> None:
        async with raw_connection(served.app.grpc_address) as raw:
            for _ in range(5):
                await raw.all_has_come()  # then it is that long since the server has seen the ping
                await asyncio.sleep(0.02)
            assert (await raw.trailers(await raw.call(INFER, MESSAGE)))["grpc-status"] == "0"

    async with serve(models, transport=transport, keepalive_min_interval_s=0.01) as served:
        await ping(served)
    async with serve(models, transport=transport, keepalive_min_interval_s=0.01, keepalive_calls_only=True) as served:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await ping(served)


async def test_a_client_that_no_longer_answers_pings_is_gone(models: Path, transport: str) -> None:
    async with serve(models, transport=transport, keepalive_time_s=0.1, keepalive_timeout_s=0.5) as served:
        served.close_gate()
        rows, answer = rows_of(1), Answer()  # not by a connection: on a slow machine that may be given up, too
        served.app._registry.get(MODEL).batcher.submit(rows, None, answer)
        await eventually(lambda: served.device.entered.acquire(blocking=False))

        async def given_up() -> bool:
            """Whether a request had come here before its connection was given up."""
            async with raw_connection(served.app.grpc_address) as raw:
                with suppress(ConnectionError):  # it may be given up before that is sent
                    await raw.call(INFER, MESSAGE)
                await raw.end()  # until then nothing is answered
            return served.over()

        await eventually(given_up)
        await eventually(lambda: served.waiting() == 0)
        served.device.gate.set()
        assert doubled(rows).tolist() == answer.array().tolist()


async def test_a_connection_without_calls_is_closed(models: Path, transport: str) -> None:
    async with (
        serve(models, transport=transport, max_connection_idle_s=0.1) as served,
        raw_connection(served.app.grpc_address) as raw,
    ):
        assert (await raw.told_to_go()).additional_data == b"connection idle"
        assert await served.infer(1.0) == [2.0]


async def test_a_connection_past_its_age_finishes_its_calls(models: Path, transport: str) -> None:
    async with (
        serve(models, transport=transport, max_connection_age_s=0.2) as served,
        raw_connection(served.app.grpc_address) as raw,
    ):
        held = await served.hold()
        call = await raw.call(INFER, MESSAGE)
        assert (await raw.told_to_go()).error_code == NO_ERROR
        await eventually(lambda: served.waiting() == 1)
        served.device.gate.set()
        assert (await raw.trailers(call))["grpc-status"] == "0"
        assert await held == [2.0]


async def test_clients_of_connections_past_their_age_do_not_notice(models: Path, transport: str) -> None:
    async with serve(models, transport=transport, max_connection_age_s=0.1) as served:
        peers: set[str] = set()
        handler = grpc.method_handlers_generic_handler(
            "test.Peer", {"Tell": grpc.unary_unary_rpc_method_handler(_remember_peer(peers))}
        )
        front = served.app._front
        assert isinstance(front, LocalFront)
        front.add((handler,))
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = served.channel.unary_unary("/test.Peer/Tell", None, None)

        async def caller(number: int) -> int:
            calls = 0
            while len(peers) < 5:
                assert await served.infer(float(number)) == [2.0 * number]
                await ask(b"")
                calls += 1
            return calls

        async with asyncio.timeout(PATIENCE_S):
            assert all(await asyncio.gather(*map(caller, range(4))))


def _remember_peer(peers: set[str]) -> Callable[..., Awaitable[bytes]]:
    async def tell(_message: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        peers.add(context.peer())
        return b""

    return tell


async def answered(served: Served) -> bool:
    """Unless its connection came to its end just then."""
    try:
        return await served.infer(1.0) == [2.0]
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False


async def test_calls_that_outlast_their_connections_grace_are_cancelled(models: Path, transport: str) -> None:
    age_s, grace_s = 0.1, 0.1
    async with serve(
        models, transport=transport, max_connection_age_s=age_s, max_connection_age_grace_s=grace_s
    ) as served:
        served.device.gate.clear()
        assert (await refused(served.infer(1.0)))[0] is grpc.StatusCode.UNAVAILABLE
        served.device.gate.set()
        await eventually(lambda: answered(served))


async def test_more_calls_than_a_connection_may_have_are_refused_and_clients_wait(models: Path, transport: str) -> None:
    most = 3
    async with serve(models, transport=transport, max_concurrent_streams=most) as served:
        held = await served.hold()
        async with channel_to(served.app) as channel, raw_connection(served.app.grpc_address) as raw:
            other = Served(served.app, served.device, channel)
            await channel.channel_ready()
            calls = [asyncio.create_task(other.infer(float(value))) for value in range(10)]
            await eventually(lambda: served.waiting() == most)
            assert (await raw.settings())[MAX_CONCURRENT_STREAMS] == most
            streams = [await raw.call(INFER, MESSAGE) for _ in range(most + 1)]
            reset = await raw.reset_stream()
            assert (reset.stream_id, reset.error_code) == (streams[-1], REFUSED_STREAM)
            served.device.gate.set()
            assert await asyncio.gather(*calls) == [[2.0 * value] for value in range(10)]
            assert [(await raw.trailers(stream))["grpc-status"] for stream in streams[:most]] == ["0"] * most
        assert await held == [2.0]


async def test_a_message_limit_that_is_set_holds(
    models: Path, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(models, transport=transport, max_message_bytes=100) as served:
        (told,) = [record.getMessage() for record in caplog.records if "--max-message-bytes" in record.getMessage()]
        assert "larger messages than 100 are refused" in told
        assert await served.infer(1.0) == [2.0]
        code, _ = await refused(served.infer(*[1.0] * 16))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_messages_that_cannot_be_unpacked_are_answered_so(served: Served) -> None:
    async with raw_connection(served.app.grpc_address) as raw:
        for path, (encoding, says) in product(
            (INFER, INFER_STREAM, LIST_MODELS),
            {"gzip": "Decompression failed", "deflate": "Decompression failed", "identity": "no encoding"}.items(),
        ):
            call = await raw.call(path, framed(b"\x1f\x8b neither", COMPRESSED), grpc_encoding=encoding)
            trailers = await raw.trailers(call)
            assert trailers["grpc-status"] == "13"
            assert says in trailers["grpc-message"]
        assert (await raw.trailers(await raw.call(INFER, MESSAGE)))["grpc-status"] == "0"
    assert served.sample("opara_requests_total", model=MODEL, code="OK") == 1


async def test_what_a_small_message_unpacks_to_is_limited_too(served: Served) -> None:
    bomb = pb.InferRequest(model="x" * 1_000_000)
    code, _ = await refused(served.stub.Infer(bomb, compression=grpc.Compression.Gzip))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("path", [INFER, INFER_STREAM, LIST_MODELS])
async def test_a_client_that_is_gone_in_mid_message_leaves_nothing_behind(served: Served, path: str) -> None:
    async def vanish(*, reset: bool) -> None:
        async with raw_connection(served.app.grpc_address) as raw:
            await raw.call(path, PART, end=False)
            if reset:
                raw.reset()

    async def bytes_after(times: int) -> int:
        """In use, once so many have come and gone."""
        for number in range(times):
            await vanish(reset=number % 2 == 0)
        assert await served.infer(1.0) == [2.0]
        await eventually(lambda: _open_files() <= files)
        return _resident_bytes()

    assert await served.infer(1.0) == [2.0]
    files = _open_files()
    sizes = [await bytes_after(50) for _ in range(5)]
    assert min(after - before for before, after in pairwise(sizes)) < 50 * len(PART) / 4, sizes
    assert served.waiting() == 0
    assert served.sample("opara_requests_total", model=MODEL, code="OK") == 1 + len(sizes)
    async with asyncio.timeout(PATIENCE_S):  # calls that had not ended would have the grace
        await served.app.stop()


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_half_a_frame_is_no_call(served: Served) -> None:
    for cut in (9, 30, 60):
        async with raw_connection(served.app.grpc_address) as raw:
            frames = raw.request_frames(INFER, MESSAGE)
            await raw.send_bytes(b"".join(frame.serialize() for frame in frames)[:cut])
            raw.reset()
    async with raw_connection(served.app.grpc_address) as raw:
        assert (await raw.trailers(await raw.call(INFER, MESSAGE)))["grpc-status"] == "0"
    assert await served.infer(1.0) == [2.0]
