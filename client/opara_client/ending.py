"""How a stream of grpc.aio really ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

from opara_client.errors import error_for

T = TypeVar("T")


Status = tuple[grpc.StatusCode, str | None]
OWN: Status = (grpc.StatusCode.INTERNAL, "Internal error from Core")
LOOK_S = 0.001
LOOKS = 1000


class Ending:
    """Tells the status that a call was ended with from one that grpc.aio makes up.

    When a stream ends while a message is being written, grpc.aio may put an INTERNAL of its own over the status, or
    ahead of it (https://github.com/grpc/grpc/issues/36066, seen in a third of 1000 tries, 1.62 to 1.85). The call's
    callbacks run as soon as it has any status, so the other one is what they see, what the reader raises, or still to
    come.
    """

    def __init__(self, call: grpc.aio.Call) -> None:
        self._call = call
        self._first: Status | None = None
        call.add_done_callback(self._keep)

    def _keep(self, _call: object) -> None:
        self._first = self._first or self._status()

    async def check(self, error: grpc.RpcError) -> None:
        """Raises the OparaError of what the reader raised, unless the server had ended the stream as it should."""
        code, details = (
            await self._other() if (error.code(), error.details()) == OWN else (error.code(), error.details())
        )
        if code is not grpc.StatusCode.OK:
            raise error_for(code, details or "") from error

    async def _other(self) -> Status:
        if self._first is not None and self._first != OWN:
            return self._first
        for _ in range(LOOKS):  # and not for so long: while this process is held up, no status can come
            if self._status() != OWN:
                break
            await asyncio.sleep(LOOK_S)  # nothing tells of a status that replaces another
        return self._status()

    def _status(self) -> Status:
        return _now(self._call.code()), _now(self._call.details())


def _now(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for, as those of a call that has its status."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("the call has no status yet")
