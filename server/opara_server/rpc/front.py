"""Where calls come in: a transport with all services on it, their health, and the way to its end."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any, Protocol

import grpc

from opara_protos.v1 import inference_pb2 as pb
from opara_server.config import ServerConfig
from opara_server.rpc.backlog import Backlog
from opara_server.rpc.descriptors import OIP_SERVICE
from opara_server.rpc.edge import Edge
from opara_server.rpc.health import HEALTH_SERVICE, Health
from opara_server.rpc.inference import Inference
from opara_server.rpc.reflecting import Reflection
from opara_server.rpc.transports import open_transport
from opara_server.rpc.turn import Turn

SERVICE: str = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
SERVER_NAMES = ("", SERVICE, OIP_SERVICE)  # that health knows the server by, beside its models
STREAM_IN_FLIGHT = 64  # requests of one stream that are worked on at a time


class StartError(Exception):
    """The server cannot start. str() is one line for the person who started it."""


class Front(Protocol):
    """What takes the calls, in this process or in others. On the event loop that is running."""

    async def listen(self) -> str:
        """Take calls from now on; the address. Raises StartError."""
        ...

    def set(self, name: str, serving: bool) -> None:
        """What health says of a model, or of the server, which is one of SERVER_NAMES."""
        ...

    def drain(self) -> None:
        """Everything is NOT_SERVING from now on."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, end streams and watches, give what is in flight so long."""
        ...


class LocalFront:
    """A gRPC server in this process."""

    def __init__(self, config: ServerConfig, edge: Edge, inference: Inference, turn: Turn | None = None) -> None:
        """``turn``: see open_transport."""
        self.health = Health()
        backlog = Backlog(config.max_stream_backlog_bytes)
        busy_poll_s = config.busy_poll_us / 1e6
        self._server = open_transport(config.transport, edge, inference, STREAM_IN_FLIGHT, turn, backlog, busy_poll_s)
        self._host, self._port = config.host, config.port
        self._shared = config.workers > 0  # the port, which the supervisor keeps
        self._secure = edge.credentials is not None

    def add(self, handlers: Iterable[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """Further methods. Before ``listen``."""
        self._server.add_generic_rpc_handlers(handlers)

    async def listen(self) -> str:
        self.add((self.health.handler(), Reflection((SERVICE, OIP_SERVICE, HEALTH_SERVICE)).handler()))
        if not self._shared:
            usable_address(self._host, self._port)
        try:
            port = self._server.listen(address(self._host, self._port))
        except RuntimeError:  # gRPC has logged why
            why = "is the port in use, or can gRPC not use such a certificate?" if self._secure else "is it in use?"
            raise _cannot_listen(self._host, self._port, why) from None
        await self._server.start()
        return address(self._host, port)

    def set(self, name: str, serving: bool) -> None:
        self.health.set(name, serving=serving)

    def drain(self) -> None:
        self.health.drain()

    async def stop(self, grace_s: float) -> None:
        self._server.close_streams()
        self.health.close()
        await self._server.stop(grace_s)


def address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def usable_address(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """The first address of ``host`` that can be bound now, as sockets take it. Nobody can connect meanwhile. Raises
    StartError with the reason, which gRPC would write into a log of its own."""
    error: OSError | None = None
    try:
        for family, *_, found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                with socket.socket(family, socket.SOCK_STREAM) as tried:
                    tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC: old connections do not count
                    tried.bind(found)
            except OSError as refused:
                error = refused
            else:
                return family, found
    except (OSError, UnicodeError) as unknown:  # UnicodeError: what cannot be a host's name at all
        raise _cannot_listen(host, port, getattr(unknown, "strerror", None) or str(unknown)) from None
    raise _cannot_listen(host, port, (error and error.strerror) or str(error))


def _cannot_listen(host: str, port: int, why: str) -> StartError:
    return StartError(f"cannot listen on {address(host, port)} (--host, --port): {why}")
