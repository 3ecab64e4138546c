"""What a worker's process does: as it is told."""

from __future__ import annotations

from opara_server.config import ServerConfig
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
        worker = Worker(config, order["limit"])
        await worker.listen()
    except (ConfigError, StartError) as error:
        control.send({"failed": str(error)})
        return 1
    control.send({"listening": True})
    for end in attached:
        await worker.attach(end)
    while True:
        said, descriptors = await orders.get()
        match said["do"]:
            case "attach":
                await worker.attach(End.of(descriptors))
            case "drain":
                worker.drain()
            case "stop":
                await worker.stop()
                return 0
