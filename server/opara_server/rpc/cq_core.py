"""gRPC's completion queue, as grpcio itself uses it: the only file that knows its private layer.

Tested with grpcio TESTED[0] to TESTED[1]; ``why_not`` says whether this one looks the same, ``cq_trial`` tries another.
A *tag* is a callable that takes the event of the operation it was given to, on the thread that serves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

try:
    from grpc._cython import cygrpc  # type: ignore[attr-defined]  # it has no types
except ImportError:  # pragma: no cover - a grpcio of another make
    cygrpc = None

TESTED = ("1.81", "1.85")
_NEEDED = (
    *("Server", "CompletionQueue", "ReceiveMessageOperation", "SendMessageOperation", "SendInitialMetadataOperation"),
    *("SendStatusFromServerOperation", "ReceiveCloseOnServerOperation", "CompletionType"),
)
_AT_ONCE = 0.0  # a deadline long past: of one that just passed gRPC sleeps for a millisecond, to which it rounds up
_NEVER = 2.0**62  # seconds; gRPC's end of time is the greatest int64
OK: int = grpc.StatusCode.OK.value[0]

Event = Any
Call = Any
Tag = Callable[[Event], None]
Metadata = Sequence[tuple[str, str | bytes]]


def is_tested() -> bool:
    """Whether this grpcio is one of those."""
    first, last, this = (tuple(map(int, text.split(".")[:2])) for text in (*TESTED, grpc.__version__))
    return first <= this <= last


def why_not() -> str:
    """Why this grpcio cannot be used so; empty where it can."""
    missing = [name for name in _NEEDED if not hasattr(cygrpc, name)]
    if missing:
        return f"grpcio {grpc.__version__} has no {', '.join(missing)}"
    return ""


class Core:
    """A server of gRPC's core with one completion queue. Its operations are for every thread."""

    def __init__(self, options: Sequence[tuple[str, Any]]) -> None:
        self._server = cygrpc.Server(tuple(options), False)
        self._queue = cygrpc.CompletionQueue()
        self._server.register_completion_queue(self._queue)

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """The port; 0 where the address is taken."""
        args = (address.encode(),) if credentials is None else (address.encode(), credentials._credentials)  # type: ignore[attr-defined]
        port: int = self._server.add_http2_port(*args)
        return port

    def start(self) -> None:
        self._server.start()

    def accept(self, tag: Tag) -> None:
        """One call more; ``tag`` is given the event of its arrival, or of failure when the server shuts down."""
        self._server.request_call(self._queue, self._queue, tag)

    def next_event(self, wait_s: float | None = None) -> Event | None:
        """None where there is none within ``wait_s`` (None: however long it takes). Its last reference should go before
        the next is asked for: gRPC takes a call to be going on until then."""
        event = self._queue.poll(wait_s if wait_s is None else time.time() + wait_s if wait_s else _AT_ONCE)
        return None if event.completion_type == cygrpc.CompletionType.queue_timeout else event

    def shut_down(self, tag: Tag) -> None:
        """Take no more calls; ``tag`` once all have ended."""
        self._server.shutdown(self._queue, tag)

    def cancel_all(self) -> None:
        self._server.cancel_all_calls()

    def destroy(self) -> None:
        """Once the event of ``shut_down`` has come, and every other, and all calls of this have returned."""
        self._server.destroy()


def method_of(arrival: Event) -> bytes:
    method: bytes = arrival.call_details.method
    return method


def metadata_of(arrival: Event) -> Metadata:
    metadata: Metadata = arrival.invocation_metadata
    return metadata


def deadline_of(arrival: Event) -> float | None:
    """On time.monotonic(); None where the client set none."""
    at: float | None = arrival.call_details.deadline
    return None if at is None or at >= _NEVER else at - time.time() + time.monotonic()


def receive(call: Call, tag: Tag) -> None:
    """The next message, see ``message_of``."""
    call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), tag)


def message_of(event: Event) -> bytes | None:
    """None where the client sends no more, or is gone."""
    message: bytes | None = event.batch_operations[0].message()
    return message if event.success else None


def watch_end(call: Call, tag: Tag) -> None:
    """Told when the call has ended, see ``was_cancelled``. Once per call, whatever becomes of it."""
    call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), tag)


def was_cancelled(event: Event) -> bool:
    """Of ``watch_end``: by the client, by its deadline, by a broken connection."""
    return bool(event.batch_operations[0].cancelled())


def send_headers(call: Call, metadata: Metadata | None, tag: Tag) -> None:
    call.start_server_batch((cygrpc.SendInitialMetadataOperation(metadata, 0),), tag)


def send_message(call: Call, message: bytes, tag: Tag, *, first: bool = False) -> None:
    """``first``: headers go ahead of it."""
    operations: tuple[Any, ...] = (cygrpc.SendMessageOperation(message, 0),)
    if first:
        operations = (cygrpc.SendInitialMetadataOperation(None, 0), *operations)
    call.start_server_batch(operations, tag)


def send_only(call: Call, message: bytes, tag: Tag, *, watch: bool = False) -> None:
    """The one answer of a unary call, which ends it. ``watch``: nobody watches the end: ``tag`` comes with it."""
    operations: tuple[Any, ...] = (
        cygrpc.SendInitialMetadataOperation(None, 0),
        cygrpc.SendMessageOperation(message, 0),
        cygrpc.SendStatusFromServerOperation(None, OK, b"", 0),
    )
    if watch:
        operations = (*operations, cygrpc.ReceiveCloseOnServerOperation(0))
    call.start_server_batch(operations, tag)


def send_status(
    call: Call,
    code: int,
    details: str,
    tag: Tag,
    *,
    first: bool = True,
    trailing: Metadata | None = None,
    watch: bool = False,
) -> None:
    """End the call. ``first``: nothing was sent before. ``watch``: as of ``send_only``."""
    operations: tuple[Any, ...] = (cygrpc.SendStatusFromServerOperation(trailing, code, details.encode(), 0),)
    if first:
        operations = (cygrpc.SendInitialMetadataOperation(None, 0), *operations)
    if watch:
        operations = (*operations, cygrpc.ReceiveCloseOnServerOperation(0))
    call.start_server_batch(operations, tag)


def peer_of(call: Call) -> str:
    peer: bytes = call.peer()
    return peer.decode()


def peer_identities_of(call: Call) -> Sequence[bytes] | None:
    found: Sequence[bytes] | None = cygrpc.peer_identities(call)
    return found


def peer_identity_key_of(call: Call) -> str | None:
    key: bytes | None = cygrpc.peer_identity_key(call)
    return None if key is None else key.decode()


def auth_context_of(call: Call) -> dict[str, Sequence[bytes]]:
    return {name.decode(): values for name, values in (cygrpc.auth_context(call) or {}).items()}
