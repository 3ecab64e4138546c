"""What carries the calls: grpc.aio, or the loop on gRPC's completion queue, behind one seam."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import grpc

from opara_server.rpc import cq_core
from opara_server.rpc.cq_server import CqServer
from opara_server.rpc.hot_calls import HotCalls
from opara_server.rpc.inference import Inference

log = logging.getLogger(__name__)

AIO, CQ = "aio", "cq"


class Transport(Protocol):
    """As much of grpc.aio.Server as is used, and the end of streams."""

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler[Any, Any]]) -> None: ...
    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None: ...
    def add_insecure_port(self, address: str) -> int: ...
    async def start(self) -> None: ...
    def close_streams(self) -> None: ...
    async def stop(self, grace: float | None) -> None: ...


class AioTransport:
    def __init__(self, options: Sequence[tuple[str, Any]], inference: Inference, stream_in_flight: int) -> None:
        self._server = grpc.aio.server(options=options)
        self._hot = HotCalls(inference, stream_in_flight)
        self._server.add_generic_rpc_handlers((self._hot,))

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler[Any, Any]]) -> None:
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        self._server.add_registered_method_handlers(service_name, method_handlers)  # type: ignore[attr-defined]

    def add_insecure_port(self, address: str) -> int:
        return self._server.add_insecure_port(address)

    async def start(self) -> None:
        await self._server.start()

    def close_streams(self) -> None:
        self._hot.close_streams()

    async def stop(self, grace: float | None) -> None:
        await self._server.stop(grace)


def open_transport(
    kind: str, options: Sequence[tuple[str, Any]], inference: Inference, stream_in_flight: int
) -> Transport:
    """``kind``: AIO, or CQ, which gives way to AIO with a warning where this grpcio has no such layer.

    It serves the methods of ``inference``; others may be added. ``stream_in_flight``: how many requests of one stream
    are worked on at a time. On the event loop that is running.
    """
    if kind == CQ:
        reason = cq_core.why_not()
        if not reason:
            return CqServer(options, inference.unary, inference.streams, stream_in_flight)
        log.warning("serving with grpc.aio: %s", reason)
    return AioTransport(options, inference, stream_in_flight)
