"""What a worker's process does: as it is told."""

from __future__ import annotations

import asyncio

from opara_server.config import ServerConfig
from opara_server.observe.tracing import open_tracer
from opara_server.rpc.front import StartError
from opara_server.settings import ConfigError
from opara_server.workers.child import Orders
from opara_server.workers.control import Control
from opara_server.workers.link import End
from opara_server.workers.worker import Worker


async def serve(config: ServerConfig, control: Control, orders: Orders) -> int:
    """Until told to stop. The exit status."""
    attached: list[End] = []
    while True:
        order, descriptors = await orders.get()
        match order["do"]:
            case "listen":
                break
            case "attach":
                attached.append(End.of(descriptors))
            case "stop":
                return 0
    try:
        tracer = open_tracer() if config.tracing else None
        worker = Worker(config, order["limit"], tracer)
        for end in attached:
            await worker.attach(end)
        if attached:
            await worker.informed()  # else the first calls would be told that there is no engine
        await worker.listen()
    except (ConfigError, StartError) as error:
        control.send({"failed": str(error)})
        return 1
    control.send({"listening": True})
    await _obey(worker, control, orders)
    if tracer is not None:
        await asyncio.to_thread(tracer.close)
    return 0


async def _obey(worker: Worker, control: Control, orders: Orders) -> None:
    """Until it has stopped."""
    while True:
        said, descriptors = await orders.get()
        match said["do"]:
            case "attach":
                await worker.attach(End.of(descriptors))
            case "answer":
                if worker.goes_on():
                    control.send({"answer": True})
            case "drain":
                worker.drain()
            case "stop":
                await worker.stop()
                return
