"""What servicers see of a call and can do to it is the same on either transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from opara_server.rpc.edge import Edge
from opara_server.rpc.tls import TlsFiles, server_credentials
from opara_server.rpc.transports import open_transport
from tests.certificates import LOOPBACK, Authority
from tests.rpc.served import PATIENCE_S, refused

Context = grpc.aio.ServicerContext[bytes, bytes]
Behaviour = Callable[[Any, Context], Awaitable[bytes | None]]
SECRET = (("x-text", "a value"), ("x-bytes-bin", bytes(range(256))))


@asynccontextmanager
async def method(
    transport: str, behaviour: Behaviour, edge: Edge | None = None, credentials: grpc.ChannelCredentials | None = None
) -> AsyncIterator[Any]:
    """``behaviour`` as the one method of a server: a callable that begins a call of it, as of a stream."""
    nothing: Any = SimpleNamespace(unary={}, streams={})
    server = open_transport(transport, edge or Edge(()), nothing, 1)
    handlers = {"Call": grpc.stream_stream_rpc_method_handler(behaviour)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Cold", handlers),))
    address = f"{LOOPBACK}:{server.listen(f'{LOOPBACK}:0')}"
    await server.start()
    opened = grpc.aio.secure_channel(address, credentials) if credentials else grpc.aio.insecure_channel(address)
    async with opened as channel:
        await channel.channel_ready()  # no deadline passes while they connect
        yield channel.stream_stream("/test.Cold/Call", None, None)
    await server.stop(PATIENCE_S)


async def finished(call: Any) -> list[bytes]:
    await call.done_writing()
    return [answer async for answer in call]


async def test_metadata_goes_in_and_out(transport: str) -> None:
    async def behaviour(_requests: object, context: Context) -> None:
        sent = [(name, value) for name, value in context.invocation_metadata() or () if name.startswith("x-")]
        await context.send_initial_metadata((*sent, ("x-first", "1")))
        await context.write(b"answer")
        context.set_trailing_metadata((*sent, ("x-last", "2")))

    async with method(transport, behaviour) as begin:
        call = begin(metadata=SECRET, timeout=PATIENCE_S)
        assert await finished(call) == [b"answer"]
        initial, trailing = tuple(await call.initial_metadata()), tuple(await call.trailing_metadata())
    assert {*SECRET, ("x-first", "1")} <= set(initial)
    assert {*SECRET, ("x-last", "2")} <= set(trailing)
    assert ("x-last", "2") not in initial


async def test_metadata_goes_with_an_error_too(transport: str) -> None:
    async def behaviour(_requests: object, context: Context) -> None:
        await context.abort(grpc.StatusCode.DATA_LOSS, "caf\xe9 100% \n lost", (("x-last", "2"),))

    async with method(transport, behaviour) as begin:
        call = begin(timeout=PATIENCE_S)
        assert await refused(finished(call)) == (grpc.StatusCode.DATA_LOSS, "caf\xe9 100% \n lost")
        assert ("x-last", "2") in tuple(await call.trailing_metadata())


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_every_code_arrives_as_it_was_set(transport: str, code: grpc.StatusCode) -> None:
    async def behaviour(_requests: object, context: Context) -> None:
        await context.write(b"before")
        context.set_code(code)
        context.set_details("why")

    async with method(transport, behaviour) as begin:
        call = begin(timeout=PATIENCE_S)
        assert await call.read() == b"before"
        assert (await call.code(), await call.details()) == (code, "why")


async def test_a_deadline_is_known_and_ends_the_call(transport: str) -> None:
    seen: dict[float, asyncio.Queue[object]] = {}  # by the time limit of the call that began

    async def behaviour(_requests: object, context: Context) -> None:
        (limit,) = (float(value) for name, value in context.invocation_metadata() or () if name == "x-limit")
        mine = seen[limit] = asyncio.Queue[object]()
        context.add_done_callback(lambda _over: mine.put_nowait("over"))  # type: ignore[arg-type]  # its stubs want a class
        mine.put_nowait(context.time_remaining())
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            mine.put_nowait("cancelled")
            raise

    async with method(transport, behaviour) as begin:
        limit, began = 0.5, False
        while not began:  # where it passes on the way there, another call has twice the time
            limit *= 2
            call = asyncio.create_task(refused(finished(begin(metadata=(("x-limit", str(limit)),), timeout=limit))))
            while not (began := limit in seen) and not call.done():
                await asyncio.sleep(0.001)
            assert (await call)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        left = await seen[limit].get()
        assert isinstance(left, float)
        assert 0 <= left <= 1.1 * limit  # gRPC rounds what it sends up
        assert {await seen[limit].get(), await seen[limit].get()} == {"cancelled", "over"}


async def test_a_client_that_cancels_is_heard_of(transport: str) -> None:
    begun, over = asyncio.Event(), asyncio.Event()

    async def behaviour(_requests: object, context: Context) -> None:
        assert context.time_remaining() is None
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            over.set()

    async with method(transport, behaviour) as begin:
        async with asyncio.timeout(PATIENCE_S):
            call = begin()
            await begun.wait()
            call.cancel()
            await over.wait()


async def test_who_calls_is_known_where_clients_have_certificates(transport: str, authority: Authority) -> None:
    async def behaviour(_requests: object, context: Context) -> None:
        names = context.auth_context()["x509_subject_alternative_name"]
        assert tuple(context.peer_identities() or ()) == tuple(names)
        assert context.peer_identity_key() == "x509_subject_alternative_name"
        assert context.peer().startswith(f"ipv4:{LOOPBACK}:")
        await context.write(b",".join(names))

    own, client = authority.issue("server"), authority.issue("client", "client.test")
    edge = Edge((), server_credentials(TlsFiles(own.certificate, own.key, authority.file)))
    async with method(transport, behaviour, edge, authority.trusted(client)) as begin:
        assert await finished(begin(timeout=PATIENCE_S)) == [b"client.test"]


async def test_in_plain_text_nobody_is_known(transport: str) -> None:
    async def behaviour(_requests: object, context: Context) -> None:
        assert not context.peer_identities()
        await context.write(b"nobody")

    async with method(transport, behaviour) as begin:
        assert await finished(begin(timeout=PATIENCE_S)) == [b"nobody"]
