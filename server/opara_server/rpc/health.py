"""grpc.health.v1 for asyncio, in place of the library's servicer (grpcio-health-checking 1.81): that one stops telling
all watchers of a name once one of them leaves, waits in ``set`` for the slowest of them, and keeps ``server.stop``
waiting for as long as anybody watches."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """One status per name: "" for the server, a service's full name, a model's name. Not thread-safe."""

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

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        status = self._status(request.service)
        if status == _UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no model or service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:  # noqa: N802
        last = None
        while not self._closed:
            changed, status = self._changed, self._status(request.service)
            if status == last:
                await changed.wait()
            else:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                last = status

    def _status(self, name: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if name not in self._serving:
            return _UNKNOWN
        return SERVING if self._serving[name] else NOT_SERVING

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
