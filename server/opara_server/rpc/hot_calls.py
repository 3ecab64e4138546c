"""The hot methods of both protocols on grpc.aio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine

import grpc

from opara_server.rpc.backlog import Backlog
from opara_server.rpc.errors import Context, answered
from opara_server.rpc.inference import Hot, Inference
from opara_server.rpc.replies import Outcome, Replies
from opara_server.rpc.stream import Stream


class HotCalls(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs only
    """The methods take raw bytes, because grpc answers what its deserializers cannot read with the exception's text.

    ``stream_in_flight``: how many requests of one stream are worked on at a time. ``backlog``: of all streams. On the
    event loop that serves.
    """

    def __init__(self, inference: Inference, stream_in_flight: int, backlog: Backlog) -> None:
        self._streams: set[Stream] = set()
        self._streams_closed = False
        replies = Replies()
        self._methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {}
        for path, hot in inference.unary.items():
            self._methods[path] = grpc.unary_unary_rpc_method_handler(_Unary(hot, replies).call)
        for path, hot in inference.streams.items():
            streamed = _Streamed(hot, replies, stream_in_flight, backlog, self._serve)
            self._methods[path] = grpc.stream_stream_rpc_method_handler(streamed.call)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        return self._methods.get(handler_call_details.method)

    def close_streams(self) -> None:
        """For good: streams read no further, answer what they have read and end with UNAVAILABLE."""
        self._streams_closed = True
        for stream in self._streams:
            stream.close()

    async def _serve(self, stream: Stream) -> None:
        self._streams.add(stream)
        if self._streams_closed:
            stream.close()
        try:
            await stream.serve()
        finally:
            self._streams.discard(stream)


class _Unary:
    def __init__(self, hot: Hot, replies: Replies) -> None:
        self._hot = hot
        self._replies = replies

    @answered
    async def call(self, message: bytes, context: Context) -> Outcome:
        return await _ask(self._hot, self._replies, message, _deadline(context), context)


class _Streamed:
    def __init__(
        self,
        hot: Hot,
        replies: Replies,
        in_flight: int,
        backlog: Backlog,
        serve: Callable[[Stream], Coroutine[None, None, None]],
    ) -> None:
        self._hot = hot
        self._replies = replies
        self._in_flight = in_flight
        self._backlog = backlog
        self._serve = serve

    @answered
    async def call(self, _messages: object, context: Context) -> None:
        deadline = _deadline(context)

        async def answer(message: bytes) -> bytes:
            outcome = await _ask(self._hot, self._replies, message, deadline, context)
            assert isinstance(outcome, bytes)
            return outcome

        await self._serve(Stream(context, answer, self._in_flight, self._backlog))


async def _ask(hot: Hot, replies: Replies, message: bytes, deadline: float | None, context: Context) -> Outcome:
    """Cancelling it frees the request's slot."""
    outcome, reply = replies.expected()
    ticket = hot(message, deadline, reply, context)
    try:
        return await outcome
    except asyncio.CancelledError:
        if ticket is not None:
            ticket.cancel()
        raise


def _deadline(context: Context) -> float | None:
    """When the call ends, on time.monotonic(); None where the client set no deadline."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining
