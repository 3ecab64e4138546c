"""InferStream: many requests in flight on one call, answered as they finish."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from opara_server.rpc.errors import Context
from opara_server.serving.errors import ModelUnavailable


class Stream:
    """One InferStream call. ``answer`` turns the bytes of a request into those of its response and raises nothing."""

    def __init__(self, context: Context, answer: Callable[[bytes], Awaitable[bytes]], in_flight: int) -> None:
        self._context = context
        self._answer = answer
        self._slots = asyncio.Semaphore(in_flight)
        self._writing = asyncio.Lock()  # grpc takes one message at a time
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
            # A slot first, then a message: while all slots are taken, flow control holds the client back.
            await self._slots.acquire()
            message: Any = await self._context.read()
            if message is grpc.aio.EOF:  # type: ignore[attr-defined]  # missing in its stubs
                return
            group.create_task(self._serve_one(message))

    async def _serve_one(self, message: bytes) -> None:
        response = await self._answer(message)
        async with self._writing:
            try:
                await self._context.write(response)
            except grpc.aio.BaseError as error:  # what gRPC says of a call that has ended
                raise _CallOverError from error
        self._slots.release()


class _CallOverError(Exception):
    """The client is gone: nobody takes the answers, and requests that are not answered yet need not be."""
