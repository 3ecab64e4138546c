"""The one place where an error becomes what a client sees: a status code and a text without anything of the inside.

ServingError carries its own status and a text written for the client. Anything else is a fault of the server: INTERNAL
with a reference, under which the log has the traceback.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeAlias, TypeVar

import grpc

from opara_server.observe.request_log import shown_id
from opara_server.observe.tracing import Call
from opara_server.serving.errors import InternalError, ServingError, Status

log = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Method: TypeAlias = Callable[[S, Any, Context], Coroutine[Any, Any, T]]

CODES: dict[Status, grpc.StatusCode] = {status: grpc.StatusCode[status.value] for status in Status}
_MAX_TEXT = 1024  # characters; a status text travels in a header, and 8 KiB of headers are all that clients take


@dataclass(frozen=True, slots=True)
class Failure:
    """What the client gets instead of an answer."""

    code: grpc.StatusCode
    text: str

    @property
    def number(self) -> int:
        """The code as google.rpc.Code numbers it."""
        number: int = self.code.value[0]
        return number


def told(error: BaseException, call: Call | None = None) -> ServingError:
    """What a client may be told of ``error``. Logs a fault of the server, with its traceback. ``call``: that it is of,
    where there is one."""
    if isinstance(error, ServingError):
        return error
    internal = InternalError()
    fields = {"reference": internal.reference, "request_id": "" if call is None else shown_id(b"", call)}
    log.error("%s", internal, exc_info=error, extra={name: value for name, value in fields.items() if value})
    return internal


def failure(error: BaseException, call: Call | None = None) -> Failure:
    """The failure to answer with. Logs a fault of the server, as ``told`` does."""
    serving_error = told(error, call)
    return Failure(CODES[serving_error.status], str(serving_error)[:_MAX_TEXT])


async def attempt(work: Awaitable[T], call: Call | None = None) -> T | Failure:
    """What ``work`` gives, or the failure to answer with. Raises only the CancelledError of a call that is over."""
    try:
        return await work
    except asyncio.CancelledError as error:
        if _cancelled_from_outside():
            raise
        return failure(error, call)
    except Exception as error:  # noqa: BLE001 - the edge: grpc would send the text of whatever passes here
        return failure(error, call)


def answered(method: Method[S, T]) -> Method[S, T]:
    """For every RPC: an exception of ``method`` ends the call with its failure."""

    @wraps(method)
    async def rpc(self: S, request: Any, context: Context) -> T:
        outcome = await attempt(method(self, request, context), context)
        if isinstance(outcome, Failure):
            try:
                await context.abort(outcome.code, outcome.text)
            except grpc.aio.InternalError as error:  # the call is over; told so, grpc logs nothing
                raise asyncio.CancelledError from error
        return outcome

    return rpc


def _cancelled_from_outside() -> bool:
    """Whether grpc.aio itself cancelled this handler's task: the client is gone, its deadline passed or the server
    stops: the call is over. Any other CancelledError that reaches a handler must be answered, or the client hangs."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
