"""Cold calls on the completion queue: the same asynchronous servicers as on grpc.aio, which see this context."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import grpc

from opara_server.rpc import cq_core as core
from opara_server.rpc.errors import Failure, failure

_EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in its stubs
_NO_REQUEST = Failure(grpc.StatusCode.UNIMPLEMENTED, "a unary call has exactly one request")


class CqContext(grpc.aio.ServicerContext[Any, Any]):
    """One call, on ``loop``."""

    def __init__(self, arrival: core.Event, loop: asyncio.AbstractEventLoop) -> None:
        self._arrival = arrival
        self._call = arrival.call
        self._deadline = core.deadline_of(arrival)
        self._loop = loop
        self._deserialize: Callable[[bytes], Any] = _as_it_is
        self._serialize: Callable[[Any], bytes] = _as_it_is
        self._headers_sent = self._statused = False
        self._code, self._details = grpc.StatusCode.OK, ""
        self._trailing: Any = None
        self._task: asyncio.Task[None] | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._ended = self._was_cancelled = False
        core.watch_end(self._call, partial(self._on_loop, self._over))

    def start(self, handler: Any) -> None:
        """On the loop. ``handler``: a grpc.RpcMethodHandler of coroutines or asynchronous generators."""
        self._deserialize = handler.request_deserializer or _as_it_is
        self._serialize = handler.response_serializer or _as_it_is
        self._task = self._loop.create_task(self._run(handler))

    async def _run(self, handler: Any) -> None:
        try:
            await self._serve(handler)
        except _AbortedError:
            return
        except asyncio.CancelledError:
            if not self._ended:
                await self._end(failure(asyncio.CancelledError()))
            return
        except Exception as error:  # noqa: BLE001 - the edge: a client must hear of whatever it is
            await self._end(failure(error, self))
            return
        await self._end(Failure(self._code, self._details))

    async def _serve(self, handler: Any) -> None:
        behaviour = handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary
        request: Any = self._requests()
        if not handler.request_streaming:
            request = await self.read()
            if request is _EOF:
                await self.abort(_NO_REQUEST.code, _NO_REQUEST.text)
        result = behaviour(request, self)
        if inspect.isasyncgen(result):
            async for response in result:
                await self.write(response)
        else:
            response = await result
            if response is not None and not handler.response_streaming:
                await self.write(response)

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not _EOF:
            yield message

    async def _end(self, status: Failure) -> None:
        if self._statused or self._ended:
            return
        self._statused = True
        first, self._headers_sent = not self._headers_sent, True
        send = partial(core.send_status, first=first, trailing=self._trailing)
        await self._operation(partial(send, self._call, status.number, status.text))

    def _over(self, event: core.Event) -> None:
        self._ended = True
        self._was_cancelled = core.was_cancelled(event)
        if self._was_cancelled and self._task is not None:
            self._task.cancel()
        for callback in self._callbacks:
            callback(self)

    async def _operation(self, begin: Callable[[core.Tag], None]) -> core.Event:
        future: asyncio.Future[core.Event] = self._loop.create_future()
        begin(partial(self._on_loop, partial(_settle, future)))
        return await future

    def _on_loop(self, what: Callable[[core.Event], None], event: core.Event) -> None:
        """On the thread that serves."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(what, event)

    async def read(self) -> Any:
        event = await self._operation(partial(core.receive, self._call))
        message = core.message_of(event)
        return _EOF if message is None else self._deserialize(message)

    async def write(self, message: Any) -> None:
        first, self._headers_sent = not self._headers_sent, True
        data = self._serialize(message)
        event = await self._operation(lambda tag: core.send_message(self._call, data, tag, first=first))
        if not event.success:
            raise grpc.aio.InternalError("the call is over")

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        if trailing_metadata:
            self._trailing = tuple(trailing_metadata)
        await self._end(Failure(code, details))
        raise _AbortedError

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        self._headers_sent = True
        metadata = tuple(initial_metadata)
        await self._operation(lambda tag: core.send_headers(self._call, metadata, tag))

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._trailing = tuple(trailing_metadata)

    def trailing_metadata(self) -> Any:
        return self._trailing

    def invocation_metadata(self) -> Any:
        return self._arrival.invocation_metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def set_details(self, details: str) -> None:
        self._details = details

    def details(self) -> str:
        return self._details

    def set_compression(self, compression: grpc.Compression) -> None:
        raise NotImplementedError("answers are sent as they are")

    def disable_next_message_compression(self) -> None:
        """Nothing is compressed."""

    def peer(self) -> str:
        return core.peer_of(self._call)

    def peer_identities(self) -> Iterable[bytes] | None:
        return core.peer_identities_of(self._call)

    def peer_identity_key(self) -> str | None:
        return core.peer_identity_key_of(self._call)

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return core.auth_context_of(self._call)

    def time_remaining(self) -> float | None:  # type: ignore[override]  # None without a deadline, as grpc.aio has it
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        return self._was_cancelled

    def done(self) -> bool:
        return self._ended or self._statused


class _AbortedError(Exception):
    """The call has its status."""


def _as_it_is(message: Any) -> Any:
    return message


def _settle(future: asyncio.Future[core.Event], event: core.Event) -> None:
    if not future.done():  # cancelled meanwhile
        future.set_result(event)
