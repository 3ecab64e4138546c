"""Whether gRPC's completion queue does here what ``cq_core`` takes it to do: two calls of a server to itself.

For versions of grpcio that nobody has tested it with: a private layer may change its meaning and keep its names.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc

from opara_server.rpc import cq_core as core

_ONE, _MANY = "/opara.Trial/One", "/opara.Trial/Many"
_MESSAGE = bytes(range(256))


class _TrialError(Exception):
    """It does something else; str() says what."""


def why_not(patience_s: float = 30.0) -> str:
    """What is wrong; empty where both calls had the answers they should. Takes some milliseconds, at most about two
    times ``patience_s``."""
    try:
        _call_itself(patience_s)
    except Exception as error:  # noqa: BLE001 - whatever a layer of unknown make raises
        tested, what = " to ".join(core.TESTED), str(error).partition("\n")[0]
        return (
            f"grpcio {grpc.__version__}, of which {tested} are tested, failed a trial: {type(error).__name__}: {what}"
        )
    return ""


def _call_itself(patience_s: float) -> None:
    server = core.Core(())
    port = server.listen("127.0.0.1:0")
    if not port:
        raise _TrialError("it cannot listen")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for method, serve in ((_ONE, _answer_one), (_MANY, _answer_many)):
                server.accept(serve)
                _check(server, channel.unary_unary(method, None, None).future(_MESSAGE, timeout=patience_s), patience_s)
    finally:
        ended: list[core.Event] = []
        server.shut_down(ended.append)
        server.cancel_all()
        _serve_until(server, lambda: bool(ended), patience_s)
        server.destroy()


def _check(server: core.Core, answer: Any, patience_s: float) -> None:
    _serve_until(server, answer.done, patience_s)
    if (got := answer.result()) != _MESSAGE[::-1]:
        raise _TrialError(f"the answer was {got!r}")


def _serve_until(server: core.Core, over: Callable[[], bool], patience_s: float) -> None:
    end = time.monotonic() + patience_s
    while not over():
        if time.monotonic() > end:
            raise _TrialError("no answer")
        event = server.next_event(0.01)
        if event is not None:
            event.tag(event)
        del event


def _answer_one(arrival: core.Event) -> None:
    _read(arrival, _ONE, partial(_answered, arrival.call))


def _answered(call: core.Call, event: core.Event) -> None:
    core.send_only(call, _reversed(event), _nothing, watch=True)


def _answer_many(arrival: core.Event) -> None:
    core.watch_end(arrival.call, _nothing)
    _read(arrival, _MANY, partial(_streamed, arrival.call))


def _streamed(call: core.Call, event: core.Event) -> None:
    core.send_message(call, _reversed(event), partial(_finish, call), first=True)


def _finish(call: core.Call, _sent: core.Event) -> None:
    core.send_status(call, core.OK, "", _nothing, first=False)


def _read(arrival: core.Event, method: str, tag: core.Tag) -> None:
    if core.method_of(arrival) != method.encode() or core.deadline_of(arrival) is None:
        raise _TrialError(f"{core.method_of(arrival)!r} arrived, with deadline {core.deadline_of(arrival)}")
    core.receive(arrival.call, tag)


def _reversed(event: core.Event) -> bytes:
    message = core.message_of(event)
    if message is None:
        raise _TrialError("no message came")
    return message[::-1]


def _nothing(_event: core.Event) -> None:
    """Of an operation that is over."""
