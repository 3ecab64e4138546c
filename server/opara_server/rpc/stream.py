"""InferStream: many requests in flight on one call, answered as they finish."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from opara_server.rpc.backlog import Backlog
from opara_server.rpc.errors import Context
from opara_server.serving.errors import ModelUnavailable


class Stream:
    """One InferStream call. ``answer`` turns the bytes of a request into those of its response and raises nothing."""

    def __init__(
        self, context: Context, answer: Callable[[bytes], Awaitable[bytes]], in_flight: int, backlog: Backlog
    ) -> None:
        """``in_flight``: how many requests are worked on at a time."""
        self._context = context
        self._answer = answer
        self._most = in_flight
        self._backlog = backlog
        self._open = 0  # requests that were read and whose answers are not sent
        self._sent = asyncio.Event()
        self._writing = asyncio.Lock()  # grpc takes one message at a time
        self._waiting = 0  # answers, for that
        self._reading: asyncio.Task[None] | None = None
        self._closed = False

    async def serve(self) -> None:
        """Returns when the client has sent its last request and has all its answers, or is gone.

        Raises ModelUnavailable where ``close`` ended it earlier.
        """
        gone = False
        try:
            async with asyncio.TaskGroup() as group:
                if not self._closed:
                    self._reading = group.create_task(self._read(group))
        except* _CallOverError:
            gone = True
        if self._closed and not gone:
            raise ModelUnavailable("the server is shutting down")

    def close(self) -> None:
        """Reads no further; what was read is still answered."""
        self._closed = True
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self, group: asyncio.TaskGroup) -> None:
        while True:
            # First a look, then a message: while too many are in flight, flow control holds the client back.
            while self._open >= self._backlog.in_flight(self._most):
                self._sent.clear()
                await self._sent.wait()
            message: Any = await self._context.read()
            if message is grpc.aio.EOF:  # type: ignore[attr-defined]  # missing in its stubs
                return
            self._open += 1
            group.create_task(self._serve_one(message))

    async def _serve_one(self, message: bytes) -> None:
        response = await self._answer(message)
        await self._wait_to_write(len(response))
        try:
            await self._context.write(response)
        except grpc.aio.BaseError as error:  # what gRPC says of a call that has ended
            raise _CallOverError from error
        finally:
            self._writing.release()
        self._open -= 1
        self._sent.set()

    async def _wait_to_write(self, nbytes: int) -> None:
        """Until all answers before this one are sent."""
        if not self._writing.locked() and not self._waiting:
            await self._writing.acquire()  # at once
            return
        self._waiting += 1
        self._backlog.change(nbytes)
        try:
            await self._writing.acquire()
        finally:
            self._waiting -= 1
            self._backlog.change(-nbytes)


class _CallOverError(Exception):
    """The client is gone: nobody takes the answers, and requests that are not answered yet need not be."""
