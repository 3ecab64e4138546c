"""What can go wrong, one class for each gRPC status code that the server documents.

    OparaError
      InvalidArgument    a tensor, shape, dtype or name is wrong; found by the server, or here before anything is sent
      NotFound           no such model
      Unavailable        no server, or the model is loading, failed or draining; raised after it was tried again
      ResourceExhausted  the queue is full, or a message is over the limit
      DeadlineExceeded   no answer in time
      Cancelled, Unauthenticated, PermissionDenied, Unimplemented, Internal

Any other code is a plain ``OparaError``; ``error.code`` tells which.
"""

# ruff: noqa: N818 (the names are those of the gRPC codes)

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import grpc.aio


class OparaError(Exception):
    """A request that was not answered. ``code``: the gRPC status; ``message``: the server's words."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(self, message: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class InvalidArgument(OparaError):
    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(OparaError):
    code = grpc.StatusCode.NOT_FOUND


class Unavailable(OparaError):
    code = grpc.StatusCode.UNAVAILABLE


class ResourceExhausted(OparaError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(OparaError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(OparaError):
    code = grpc.StatusCode.CANCELLED


class Unauthenticated(OparaError):
    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(OparaError):
    code = grpc.StatusCode.PERMISSION_DENIED


class Unimplemented(OparaError):
    code = grpc.StatusCode.UNIMPLEMENTED


class Internal(OparaError):
    code = grpc.StatusCode.INTERNAL


# What gRPC says of a message over a limit begins with whose limit it is.
_LARGER = "message larger than max"
_WHOSE = {
    "SERVER": "fewer rows a request, or a larger max_rows of the model (--max-message-bytes of the server)",
    "CLIENT": "max_message_bytes of the client",
}

_CLASSES = {cls.code: cls for cls in OparaError.__subclasses__()}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def error_for(code: grpc.StatusCode | int, message: str) -> OparaError:
    """The error of a status code, given as gRPC's enum or as the number on the wire; an unknown number is UNKNOWN."""
    if isinstance(code, int):
        code = _CODES.get(code, grpc.StatusCode.UNKNOWN)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _LARGER in message:
        cure = _WHOSE.get(message.partition(":")[0])
        message += f" bytes: {cure}" if cure else ""
    return _CLASSES.get(code, OparaError)(message, code)


@contextmanager
def translated() -> Iterator[None]:
    """Turns gRPC's errors into ours. The one place that does, for sync and asyncio.

    A call on a closed channel raises ValueError; grpc.aio has an error of its own for that.
    """
    try:
        yield
    except grpc.aio.UsageError as error:
        raise ValueError("the client is closed") from error
    except grpc.RpcError as error:
        raise error_for(error.code(), error.details() or "") from error
