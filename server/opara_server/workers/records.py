"""What workers and the engine tell each other of requests: records of fixed size, in pipes.

A pipe is the kernel's own ring: writing a record is atomic, wakes who waits at the other end, is ordered after what was
written to shared memory before on every processor, and reading it ends when the other process does. A *place* is where
in the shared region a request's tensors lie, one after the other, and later its answer's; while the request is being
worked on it is its name, too.
"""

from __future__ import annotations

import fcntl
import logging
import os
from struct import Struct
from typing import NamedTuple

from opara_server.observe.tracing import SpanContext
from opara_server.serving.errors import (
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidInput,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    ServingError,
    Unsupported,
)

SUBMISSION = Struct("<QIIdqq")
"""place, model, rows, deadline on time.monotonic() (inf: none), priority, timeout_us. ``model`` may be CANCEL; with
SAMPLED in it, the request's span lies behind the tensors, where an error's text would."""

COMPLETION = Struct("<QII")
"""place, status, bytes of the error's text behind the tensors. ``status``: 0, or that of an error, plus HELD where the
place may not be used again before another record says RELEASED."""

log = logging.getLogger(__name__)

CANCEL = 2**32 - 1
SAMPLED = 1 << 31
HELD = 1 << 16
RELEASED = HELD - 1
TEXT_BYTES = 1024  # the most of an error's text; every place has room for it behind the larger of request and answer
ERRORS: tuple[type[ServingError], ...] = (
    InvalidInput,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    DeadlineExceeded,
    Cancelled,
    Unsupported,
    InternalError,
)
STATUS = {kind: 1 + index for index, kind in enumerate(ERRORS)}
_SPAN = Struct("<16s8sH")  # trace, span, bytes of the state that follows
ATOMIC_BYTES = 4096  # PIPE_BUF of Linux: a pipe takes as many at once, and gives them out so
_READ_BYTES = 1 << 16
_PIPE_BYTES = 1 << 20  # what a process without privileges may ask for


class Pipe(NamedTuple):
    reads: int
    writes: int


def pipe() -> Pipe:
    """As large as may be: Linux counts the pages of all pipes of a user (fs.pipe-user-pages-soft)."""
    made = Pipe(*os.pipe())
    try:
        fcntl.fcntl(made.writes, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except PermissionError:
        log.warning("a pipe to a worker is small", extra={"most_requests": most_at_once(made.writes)})
    return made


def most_at_once(*pipes: int) -> int:
    """How many requests a worker may have open, so that none of its ``pipes`` is ever full: of each request there are
    three submissions at most (its cancellation, the next one at its place, that one's cancellation), or two smaller
    completions. What is written at once is not parted: of two pages that follow each other only half may be used, but
    for a record."""
    return min(fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) for fd in pipes) // (7 * SUBMISSION.size)


def read(fd: int, record: Struct) -> bytes | None:
    """All records there are; empty at the end. Where there are none yet it waits for one; of a descriptor that does not
    block: None."""
    try:
        return os.read(fd, _READ_BYTES // record.size * record.size)
    except BlockingIOError:
        return None


def write_span(places: memoryview, at: int, span: SpanContext) -> None:
    """Into TEXT_BYTES; a state that is too long for it is left out."""
    state = span.state.encode()
    if _SPAN.size + len(state) > TEXT_BYTES:
        state = b""
    end = at + _SPAN.size + len(state)
    places[at:end] = _SPAN.pack(span.trace_id.to_bytes(16), span.span_id.to_bytes(8), len(state)) + state


def read_span(places: memoryview, at: int) -> SpanContext:
    trace_id, span_id, length = _SPAN.unpack_from(places, at)
    state = bytes(places[at + _SPAN.size : at + _SPAN.size + length]).decode()
    return SpanContext(int.from_bytes(trace_id), int.from_bytes(span_id), state)


def error_of(status: int, text: str) -> ServingError:
    """The error that a completion with ``status`` tells of."""
    kind = ERRORS[status - 1]
    return InternalError(text.rpartition(" ")[2]) if kind is InternalError else kind(text)
