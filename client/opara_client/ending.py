"""How a stream of grpc.aio really ended."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

from opara_client.errors import error_for

T = TypeVar("T")


class Ending:
    """Keeps the first status of a call.

    When the server ends a stream while a message is being written, grpc.aio may put an INTERNAL of its own over the
    server's status (https://github.com/grpc/grpc/issues/36066, seen in a third of 1000 tries, 1.62 to 1.85). The call's
    callbacks run as soon as it has any status, so the server's is either what they see or what the reader raises.
    """

    def __init__(self, call: grpc.aio.Call) -> None:
        self._first: tuple[grpc.StatusCode, str | None] | None = None
        call.add_done_callback(lambda _: self._keep(call))

    def _keep(self, call: grpc.aio.Call) -> None:
        if self._first is None:
            self._first = _now(call.code()), _now(call.details())

    def check(self, error: grpc.RpcError) -> None:
        """Raises the OparaError of what the reader raised, unless the server had ended the stream as it should."""
        code, details = error.code(), error.details()
        if code is grpc.StatusCode.INTERNAL and self._first is not None:
            code, details = self._first
        if code is not grpc.StatusCode.OK:
            raise error_for(code, details or "") from error


def _now(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for, as those of a call that has its status."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("the call has no status yet")
