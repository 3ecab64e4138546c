"""A worker's or the engine's process, as the supervisor starts it: ``python -m opara_server.workers.child ROLE FD``.

It does what it is told through the socket that it inherits, and ends with the process that started it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

import uvloop

from opara_server.config import ServerConfig
from opara_server.observe import logs
from opara_server.workers.control import Control

log = logging.getLogger(__name__)

ENGINE, WORKER = "engine", "worker"
_MOST_BYTES = 1 << 16

Orders = asyncio.Queue[tuple[dict[str, Any], Sequence[int]]]


def main() -> None:
    role, descriptor = sys.argv[1:]
    connection = socket.socket(fileno=int(descriptor))
    connection.set_inheritable(False)
    signal.signal(signal.SIGINT, _left_to_the_supervisor)  # not SIG_IGN, which compilers that we start would inherit
    config = ServerConfig.model_validate(json.loads(connection.recv(_MOST_BYTES))["config"])
    logs.set_up(config.log_format, config.log_level, role=role)
    logs.take_over()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(_serve(role, config, connection))
    os._exit(status)  # threads in native code might not survive the interpreter's own end


def _left_to_the_supervisor(_number: int, _frame: object) -> None:
    """A process group is told as a whole; the supervisor tells its children itself."""


async def _serve(role: str, config: ServerConfig, connection: socket.socket) -> int:
    orders: Orders = asyncio.Queue()
    control = Control(connection, lambda said, descriptors: orders.put_nowait((said, descriptors)), _orphaned)
    gc.disable()  # what is imported stays: see commands.serve
    if role == WORKER:
        from opara_server.workers.worker_process import serve  # noqa: PLC0415 - only what the role needs
    else:
        from opara_server.workers.engine_process import serve  # noqa: PLC0415 - imports torch
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGTERM, _left_to_the_supervisor)  # until here it ends us: nothing is lost, and nobody waits
    return await serve(config, control, orders)


def _orphaned() -> None:
    log.error("the supervisor has ended")
    os._exit(1)


if __name__ == "__main__":
    main()
