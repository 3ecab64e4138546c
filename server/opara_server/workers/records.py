"""What workers and the engine tell each other of requests: records of fixed size, in pipes.

A pipe is the kernel's own ring: writing a record is atomic, wakes who waits at the other end, is ordered after what was
written to shared memory before on every processor, and reading it ends when the other process does. A *place* is where
in the shared region a request's tensors lie, one after the other, and later its answer's; while the request is being
worked on it is its name, too.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from struct import Struct
from typing import NamedTuple

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
"""place, model, rows, deadline on time.monotonic() (inf: none), priority, timeout_us. ``model`` may be CANCEL."""

COMPLETION = Struct("<QII")
"""place, status, bytes of the error's text behind the tensors. ``status``: 0, or that of an error, plus HELD where the
place may not be used again before another record says RELEASED."""

CANCEL = 2**32 - 1
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
ATOMIC_BYTES = 4096  # PIPE_BUF of Linux: a pipe takes as many at once, and gives them out so
_READ_BYTES = 1 << 16
_PIPE_BYTES = 1 << 20  # what a process without privileges may ask for


class Pipe(NamedTuple):
    reads: int
    writes: int


def pipe() -> Pipe:
    """As large as may be."""
    made = Pipe(*os.pipe())
    with suppress(PermissionError):  # then it is as large as any
        fcntl.fcntl(made.writes, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return made


def most_at_once(fd: int) -> int:
    """How many requests a worker may have open, so that neither of its pipes, which are as large as this one, is ever
    full: of each request there are three submissions in it at most (its cancellation, the next one at its place, that
    one's cancellation) and one completion, and records do not share a page's last bytes."""
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) // (4 * SUBMISSION.size)


def read(fd: int, record: Struct) -> bytes:
    """All records there are, at least one; empty at the end."""
    return os.read(fd, _READ_BYTES // record.size * record.size)


def error_of(status: int, text: str) -> ServingError:
    """The error that a completion with ``status`` tells of."""
    kind = ERRORS[status - 1]
    return InternalError(text.rpartition(" ")[2]) if kind is InternalError else kind(text)
