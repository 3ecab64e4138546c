"""What carries the calls: grpc.aio, or the loop on gRPC's completion queue, behind one seam."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any, Protocol

import grpc

from opara_server.rpc import cq_core, cq_trial
from opara_server.rpc.backlog import Backlog
from opara_server.rpc.cq_server import CqServer
from opara_server.rpc.edge import Edge
from opara_server.rpc.gate import Gate
from opara_server.rpc.hot_calls import HotCalls
from opara_server.rpc.inference import Inference
from opara_server.rpc.turn import Turn

log = logging.getLogger(__name__)

AIO, CQ = "aio", "cq"
_MOST_WAITS = 50


class Transport(Protocol):
    """As much of grpc.aio.Server as is used, and the end of streams."""

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler[Any, Any]]) -> None: ...
    def listen(self, address: str) -> int: ...
    async def start(self) -> None: ...
    def close_streams(self) -> None: ...
    async def stop(self, grace: float | None) -> None: ...


class AioTransport:
    def __init__(
        self,
        edge: Edge,
        inference: Inference,
        stream_in_flight: int,
        backlog: Backlog | None = None,
        quiet_s: float = 0.01,
    ) -> None:
        """``quiet_s``: it does not stop before no call was taken for so long. The others: see open_transport."""
        _GRPC_LOG.addFilter(_OF_OURS)  # which is there once, however many servers there are
        self._server = grpc.aio.server(options=edge.options)
        self._quiet_s = quiet_s
        self._arrivals = _Arrivals()
        self._server.add_generic_rpc_handlers((self._arrivals,))
        self._credentials = edge.credentials
        self._hot = HotCalls(inference, stream_in_flight, backlog or Backlog())
        if edge.access is not None:
            self._server.add_generic_rpc_handlers((Gate(edge.access),))
        self._server.add_generic_rpc_handlers((self._hot,))

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler[Any, Any]]) -> None:
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def listen(self, address: str) -> int:
        """The port. Raises RuntimeError where the address is taken."""
        if self._credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._credentials)

    async def start(self) -> None:
        await self._server.start()

    def close_streams(self) -> None:
        self._hot.close_streams()

    async def stop(self, grace: float | None) -> None:
        """grpc.aio takes one call after the other, and as it stops cancels those that have come and wait to be taken:
        so first take what there is, but give up soon where clients go on calling."""
        end, quiet = time.monotonic() + min(grace or 0.0, _MOST_WAITS * self._quiet_s), False
        while not quiet and (began := time.monotonic()) < end:
            taken = self._arrivals.taken
            await asyncio.sleep(self._quiet_s)
            late = time.monotonic() - began > 2 * self._quiet_s  # this process was held up: calls may wait still
            quiet = taken == self._arrivals.taken and not late
        await self._server.stop(grace)


class _OfOurs(logging.Filter):
    """Of what grpc.aio logs, all but that an answer found its call over: the client is gone, or its time has passed.
    That is no error of the server's, and under load there are many."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


_GRPC_LOG, _OF_OURS = logging.getLogger("grpc._cython.cygrpc"), _OfOurs()


class _Arrivals(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs only
    """Counts the calls that are taken: it is asked first for every one's method."""

    def __init__(self) -> None:
        self.taken = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> None:  # noqa: ARG002
        self.taken += 1


def open_transport(
    kind: str,
    edge: Edge,
    inference: Inference,
    stream_in_flight: int,
    turn: Turn | None = None,
    backlog: Backlog | None = None,
    busy_poll_s: float = 0.0,
) -> Transport:
    """``kind``: AIO, or CQ, which gives way to AIO with a warning where this grpcio has no such layer, or another than
    was tested that fails a trial.

    It serves the methods of ``inference``; others may be added. ``stream_in_flight``: how many requests of one stream
    are worked on at a time. ``turn``: that of the thread that serves the completion queue, where others bring answers.
    ``backlog``: of the streams of this process. ``busy_poll_s``: of CQ, for how long after each event it looks for more
    before it sleeps. On the event loop that is running.
    """
    if kind == CQ:
        reason = cq_core.why_not() or ("" if cq_core.is_tested() else cq_trial.why_not())
        if not reason:
            return CqServer(edge, inference.unary, inference.streams, stream_in_flight, turn, backlog, busy_poll_s)
        log.warning("serving with grpc.aio: %s", reason)
    return AioTransport(edge, inference, stream_in_flight, backlog)
