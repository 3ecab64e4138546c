"""What the engine's process does: everything that a server does, but for taking calls."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from opara_server.app import Application, model_handlers
from opara_server.config import ServerConfig
from opara_server.observe.logs import news_only
from opara_server.observe.metrics import Metrics
from opara_server.rpc.front import StartError
from opara_server.serving.registry import LoadError, Registry
from opara_server.settings import ConfigError
from opara_server.workers.child import Orders
from opara_server.workers.control import Control
from opara_server.workers.fronts import Fronts
from opara_server.workers.link import End

log = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 0.1


async def serve(config: ServerConfig, control: Control, orders: Orders) -> int:
    """Until told to stop. The exit status."""
    try:
        app, fronts = _application(config, control)
        control.send({"limit": app.message_limit})
        obeying = asyncio.create_task(_obey(orders, control, fronts, app))
        async with app:
            if app.serving:
                control.send({"ready": app.metrics_address})
            await app.wait()
        obeying.cancel()
    except (ConfigError, LoadError, StartError) as error:
        control.send({"failed": str(error)})
        return 1
    return 1 if app.failed else 0


def _application(config: ServerConfig, control: Control) -> tuple[Application, Fronts]:
    opened: list[Fronts] = []

    def open_front(config: ServerConfig, registry: Registry, metrics: Metrics) -> Fronts:
        opened.append(Fronts(registry, metrics, model_handlers(registry, metrics, admin=config.admin)))
        return opened[0]

    progress = news_only(lambda what, share: control.send({"doing": what, "share": share}), _PROGRESS_EVERY_S)
    app = Application(config, progress=progress, open_front=open_front)
    return app, opened[0]


async def _obey(orders: Orders, control: Control, fronts: Fronts, app: Application) -> None:
    while True:
        said, descriptors = await orders.get()
        match said["do"]:
            case "attach":
                await fronts.attach(End.of(descriptors), partial(control.send, {"broken": said["worker"]}))
            case "answer":
                control.send({"answer": True})
            case "count":
                app.metrics.workers_replaced.labels(said["cause"]).inc()
            case "stop":
                app.ask_to_stop()
