"""An engine's front and one worker in this process: all of the way between them, without starting anything."""

from __future__ import annotations

from opara_server.app import largest_message, model_handlers
from opara_server.config import ServerConfig
from opara_server.observe.metrics import Metrics
from opara_server.observe.tracing import Tracer
from opara_server.serving.registry import Registry
from opara_server.workers.fronts import Fronts
from opara_server.workers.link import link
from opara_server.workers.worker import Worker


class Pair:
    """In place of a gRPC server."""

    def __init__(
        self, config: ServerConfig, registry: Registry, metrics: Metrics, tracer: Tracer | None = None
    ) -> None:
        """``tracer``: the worker's."""
        self.fronts = Fronts(registry, metrics, model_handlers(registry, metrics, admin=config.admin))
        self.worker = Worker(config, largest_message(config), tracer)

    async def listen(self) -> str:
        await self.fronts.listen()
        engines, workers = link()
        await self.fronts.attach(engines, lambda: None)
        await self.worker.attach(workers)
        return await self.worker.listen()

    def set(self, name: str, serving: bool) -> None:
        self.fronts.set(name, serving=serving)

    def drain(self) -> None:
        self.worker.drain()

    async def stop(self, grace_s: float) -> None:
        await self.worker.stop()
        await self.fronts.stop(grace_s)
