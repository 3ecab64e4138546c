"""ServingError
├── InvalidInput       INVALID_ARGUMENT    the request itself is wrong; says which input and what was expected
├── ModelNotFound      NOT_FOUND           no model of that name
├── ModelUnavailable   UNAVAILABLE         loading, failed to load, draining or gone
├── Overloaded         RESOURCE_EXHAUSTED  the queue is full
├── DeadlineExceeded   DEADLINE_EXCEEDED   cannot be answered in time, and was not executed
├── Cancelled          CANCELLED           the caller gave up
├── Unsupported        UNIMPLEMENTED       this server does not do that, or was not started to
└── InternalError      INTERNAL            anything else; the reason is in the log, under the reference in the text

str(error) is what the client reads: no exception texts and no paths may enter it.
"""
# ruff: noqa: N818 - named as the outcomes they are

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar
from uuid import uuid4


class Status(StrEnum):
    """Outcomes of a request, named as gRPC names them."""

    OK = "OK"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    UNAVAILABLE = "UNAVAILABLE"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"


class ServingError(Exception):
    """A request that was not answered. ``status`` says whose fault it is."""

    status: ClassVar[Status] = Status.INTERNAL


class InvalidInput(ServingError):
    status = Status.INVALID_ARGUMENT


class ModelNotFound(ServingError):
    status = Status.NOT_FOUND


class ModelUnavailable(ServingError):
    status = Status.UNAVAILABLE


class Overloaded(ServingError):
    status = Status.RESOURCE_EXHAUSTED


class DeadlineExceeded(ServingError):
    status = Status.DEADLINE_EXCEEDED

    def __init__(self, message: str = "the request cannot be answered in time and was not executed") -> None:
        super().__init__(message)


class Cancelled(ServingError):
    status = Status.CANCELLED

    def __init__(self, message: str = "the request was cancelled") -> None:
        super().__init__(message)


class Unsupported(ServingError):
    status = Status.UNIMPLEMENTED


class InternalError(ServingError):
    """``reference`` stands in the client's text and in the log, and joins the two."""

    status = Status.INTERNAL

    def __init__(self, reference: str | None = None) -> None:
        self.reference = reference or uuid4().hex[:12]
        super().__init__(f"internal error {self.reference}")
