"""The outgoing side of a stream: requests are encoded as it takes them, a bounded number ahead of the answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count

import grpc.aio

from opara_client.errors import Unavailable
from opara_client.messages import InferRequest
from opara_protos.v1 import inference_pb2 as pb


class _Progress:
    """How far a stream is. The sender writes all but ``answered``, so that no count has two writers."""

    def __init__(self) -> None:
        self.sent = 0
        self.answered = 0
        self.exhausted = False
        self.failure: Exception | None = None  # of the caller's iterable, or of encoding what it gave

    def check_complete(self) -> None:
        """After the server ended the stream: raises what ended the requests early, on either side."""
        if self.answered < self.sent or not (self.exhausted or self.failure):
            raise Unavailable("the server ended the stream with requests unanswered")
        if self.failure:
            raise self.failure


class Feed:
    """Iterated by gRPC on a thread of its own."""

    def __init__(
        self,
        requests: Iterable[InferRequest],
        encode: Callable[[InferRequest], pb.InferStreamRequest],
        max_in_flight: int,
    ) -> None:
        self._requests = iter(requests)
        self._encode = encode
        self._slots = threading.Semaphore(max_in_flight)
        self._progress = _Progress()
        self._closed = False

    def __iter__(self) -> Iterator[pb.InferStreamRequest]:
        progress = self._progress
        try:
            for position in count():
                self._slots.acquire()
                request = None if self._closed else next(self._requests, None)
                if request is None:
                    break
                message = self._encode(_with_id(request, position))
                progress.sent += 1
                yield message
            progress.exhausted = True
        except Exception as error:  # noqa: BLE001 (raised again, on the caller's own thread, by check_complete)
            progress.failure = error

    def answered(self) -> None:
        """One answer was taken: one more request may go out."""
        self._progress.answered += 1
        self._slots.release()

    def check_complete(self) -> None:
        self._progress.check_complete()

    def close(self) -> None:
        """Lets the sending thread end, wherever it waits here."""
        self._closed = True
        self._slots.release()


class AsyncFeed:
    """``send`` runs as a task beside the one that reads the answers."""

    def __init__(
        self,
        requests: Iterable[InferRequest] | AsyncIterable[InferRequest],
        encode: Callable[[InferRequest], Awaitable[pb.InferStreamRequest]],
        max_in_flight: int,
    ) -> None:
        self._requests = aiter(requests) if isinstance(requests, AsyncIterable) else _asynchronous(requests)
        self._encode = encode
        self._slots = asyncio.Semaphore(max_in_flight)
        self._progress = _Progress()

    async def send(self, call: grpc.aio.StreamStreamCall[pb.InferStreamRequest, pb.InferStreamResponse]) -> None:
        progress = self._progress
        try:
            for position in count():
                await self._slots.acquire()
                request = await anext(self._requests, None)
                if request is None:
                    break
                message = await self._encode(_with_id(request, position))
                progress.sent += 1
                await call.write(message)
            progress.exhausted = True
        except Exception as error:  # noqa: BLE001 (raised again, in the caller's own task, by check_complete)
            progress.failure = error
        await call.done_writing()

    def answered(self) -> None:
        """One answer was taken: one more request may go out."""
        self._progress.answered += 1
        self._slots.release()

    def check_complete(self) -> None:
        self._progress.check_complete()


async def _asynchronous(requests: Iterable[InferRequest]) -> AsyncIterator[InferRequest]:
    for request in requests:
        yield request


def _with_id(request: InferRequest, position: int) -> InferRequest:
    return request if request.id else replace(request, id=str(position))
