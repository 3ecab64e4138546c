"""grpc.health.v1 for asyncio, in place of the library's servicer (grpcio-health-checking 1.81): that one stops telling
all watchers of a name once one of them leaves, waits in ``set`` for the slowest of them, and keeps ``server.stop``
waiting for as long as anybody watches."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health_pb2

from opara_server.rpc.errors import Context, answered
from opara_server.rpc.wire import parse, shown
from opara_server.serving.errors import ModelNotFound

HEALTH_SERVICE: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """One status per name: "" for the server, a service's full name, a model's name. Not thread-safe. The methods take
    raw bytes, because grpc answers what its deserializers cannot read with the exception's text."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._changed = asyncio.Event()  # of the next change: each change sets it and puts a fresh one in its place
        self._draining = False
        self._closed = False

    def set(self, name: str, serving: bool) -> None:
        """While draining everything stays NOT_SERVING."""
        self._serving[name] = serving and not self._draining
        self._tell()

    def serving(self, name: str = "") -> bool:
        return self._serving.get(name, False)

    def drain(self) -> None:
        """Everything is NOT_SERVING from now on."""
        self._draining = True
        self._serving = dict.fromkeys(self._serving, False)
        self._tell()

    def close(self) -> None:
        """Ends all watches, so that nothing but work in flight keeps the server from stopping."""
        self._closed = True
        self._tell()

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self.check),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
        }
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, methods)

    @answered
    async def check(self, message: bytes, _context: Context) -> bytes:
        name = parse(health_pb2.HealthCheckRequest, message).service
        status = self._status(name)
        if status == _UNKNOWN:
            raise ModelNotFound(f"no model or service {shown(name)}")
        return _written(status)

    @answered
    async def watch(self, message: bytes, context: Context) -> None:
        name, last = parse(health_pb2.HealthCheckRequest, message).service, None
        while not self._closed:
            changed, status = self._changed, self._status(name)
            if status == last:
                await changed.wait()
                continue
            try:
                await context.write(_written(status))
            except grpc.aio.BaseError:  # what gRPC says of a call that has ended
                return
            last = status

    def _status(self, name: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if name not in self._serving:
            return _UNKNOWN
        return SERVING if self._serving[name] else NOT_SERVING

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _written(status: health_pb2.HealthCheckResponse.ServingStatus) -> bytes:
    written: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    return written
