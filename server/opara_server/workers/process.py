"""One child of the supervisor."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from opara_server.config import ServerConfig
from opara_server.observe.causes import Cause
from opara_server.rpc.busy_poll import NO_THREADS
from opara_server.workers.child import WORKER
from opara_server.workers.control import Control, pair

# Of workers: glibc otherwise gives large buffers back to the kernel, and faults them in again for every request.
_ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(64 << 20),
}

Told = Callable[[dict[str, Any]], None]


class Process:
    """It runs until it has ``ended``; what it says goes to whoever started it."""

    def __init__(self, process: asyncio.subprocess.Process, connection: socket.socket, told: Told) -> None:
        self.failure = ""  # why it cannot do its work, where it said so
        self.cause = Cause.ENDED  # why it ends, once it does
        self.unanswered = 0  # questions since it has answered one
        self._process = process
        self._told = told
        self._control = Control(connection, self._hear, lambda: None)

    @classmethod
    async def start(cls, role: str, config: ServerConfig, told: Told) -> Self:
        """With this interpreter and its paths; what it logs goes where this process's does."""
        ours, childs = pair()
        with childs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "opara_server.workers.child", role, str(childs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                env=_environment(role),
                pass_fds=(childs.fileno(),),
                start_new_session=True,  # Ctrl-C is told to the supervisor alone, whatever a child is importing
            )
        child = cls(process, ours, told)
        child.tell({"config": config.model_dump(mode="json")})
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, said: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Nothing where it has ended."""
        self._control.send(said, descriptors)

    def _hear(self, said: dict[str, Any], _descriptors: Sequence[int]) -> None:
        if "failed" in said:
            self.failure = said["failed"]
        elif "answer" in said:
            self.unanswered = 0
        else:
            self._told(said)

    def ask(self) -> int:
        """Ask it whether it lives; how many questions were unanswered before this one."""
        before = self.unanswered
        self.unanswered += 1
        self.tell({"do": "answer"})
        return before

    def kill(self, cause: Cause = Cause.ENDED) -> None:
        self.cause = cause
        with suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> int:
        """Its exit status, once it has; negative: the signal that ended it."""
        status = await self._process.wait()
        self._control.close()
        return status

    async def end(self, within_s: float) -> None:
        """Have it stop; killed if that takes longer. The signal ends it where it is still importing what it needs, and
        hears nothing; later it means nothing to it."""
        self.tell({"do": "stop"})
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self.ended(), within_s)
        except TimeoutError:
            self.kill()
            await self.ended()


def _environment(role: str) -> dict[str, str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return (_ALLOCATOR | NO_THREADS if role == WORKER else {}) | os.environ | {"PYTHONPATH": path}
