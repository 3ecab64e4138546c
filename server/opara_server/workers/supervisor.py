"""The process that a person starts: one child owns the device, others take calls, and those that die are replaced."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

from opara_server.config import ServerConfig
from opara_server.observe.causes import Cause
from opara_server.observe.logs import tell_failure
from opara_server.rpc.front import StartError, address, usable_address
from opara_server.stopping import stop_on_signals
from opara_server.workers.child import ENGINE, WORKER
from opara_server.workers.link import link
from opara_server.workers.process import Process
from opara_server.workers.restarts import Restarts

log = logging.getLogger(__name__)

_MARGIN_S = 5.0  # beyond the grace, before a child that should stop is killed
_ASK_EVERY_S = 10.0
_MOST_UNANSWERED = 6  # questions in a row: a machine that stands still for long costs one of them

Progress = Callable[[str, float], None]


async def _next_time() -> None:
    await asyncio.sleep(_ASK_EVERY_S)


class Supervisor:
    """On the event loop that is running."""

    def __init__(
        self,
        config: ServerConfig,
        port: int,
        progress: Progress,
        *,
        next_time: Callable[[], Awaitable[None]] = _next_time,
    ) -> None:
        """``port``: one that is kept for the workers. Whenever ``next_time`` is over, an engine that serves and workers
        that listen are asked whether they live: who leaves _MOST_UNANSWERED questions in a row without an answer is
        as good as dead."""
        self._config = config.model_copy(update={"port": port})
        self._next_time = next_time
        self._progress = progress
        self.engine: Process | None = None
        self._workers: dict[int, Process] = {}
        self._limit: int | None = None  # of messages, in bytes, once it is known
        self._may_listen = False  # the workers
        self._listening: set[int] = set()
        self._metrics = ""
        self.ready = self._told_ready = False
        self._stop_asked = asyncio.Event()

    def ask_to_stop(self) -> None:
        self._stop_asked.set()

    async def run(self) -> int:
        """Until ``ask_to_stop`` or a signal, or until what dies is given up. The exit status."""
        stop_on_signals(self.ask_to_stop, self._kill)
        keeping = [asyncio.create_task(self._keep_engine()), asyncio.create_task(self._watch())]
        keeping += [asyncio.create_task(self._keep_worker(index)) for index in range(self._config.workers)]
        asked = asyncio.create_task(self._stop_asked.wait())
        done, _ = await asyncio.wait((*keeping, asked), return_when=asyncio.FIRST_COMPLETED)
        failed = [error for task in done if (error := task.exception())]
        for task in (*keeping, asked):
            task.cancel()
        await asyncio.gather(*keeping, asked, return_exceptions=True)
        await self._stop()
        for error in failed:
            if not isinstance(error, StartError):
                raise error
            tell_failure(error)
        return 1 if failed else 0

    async def _keep_engine(self) -> None:
        """Raises StartError where that is in vain."""
        restarts = Restarts()
        while True:
            restarts.began()
            # When it is told to stop, the delay is over; the ports are the workers'.
            config = self._config.model_copy(update={"drain_delay_s": 0.0, "listen_when_ready": False})
            engine = await Process.start(ENGINE, config, self._engine_told)
            self.engine = engine
            for worker in self._workers.values():
                _join(engine, worker)
            status = await engine.ended()
            self.engine, self.ready = None, False
            await _again("the engine", engine, status, restarts)

    async def _keep_worker(self, index: int) -> None:
        """Likewise."""

        def listening(_said: dict[str, Any]) -> None:
            self._listening.add(index)
            log.info("worker %d listens", index, extra={"pid": self._workers[index].pid})
            self._tell_ready()

        restarts = Restarts()
        while True:
            restarts.began()
            worker = await Process.start(WORKER, self._config, listening)
            self._workers[index] = worker
            if self.engine is not None:
                _join(self.engine, worker)
            if self._may_listen:
                worker.tell({"do": "listen", "limit": self._limit})
            status = await worker.ended()
            del self._workers[index]
            self._listening.discard(index)
            if self.engine is not None:
                self.engine.tell({"do": "count", "cause": worker.cause})
            await _again(f"worker {index}", worker, status, restarts)

    def _engine_told(self, said: dict[str, Any]) -> None:
        match said:
            case {"limit": limit}:
                self._limit = limit
                if not self._config.listen_when_ready:
                    self._let_listen()
            case {"doing": what, "share": share}:
                self._progress(what, share)
            case {"ready": metrics_address}:
                self.ready, self._metrics = True, metrics_address
                port = int(metrics_address.rpartition(":")[2])  # where it is looked for: the next engine has the same
                self._config = self._config.model_copy(update={"metrics_port": port})
                self._let_listen()
                if self._told_ready:
                    log.info("the engine serves again")
                self._tell_ready()
            case {"broken": pid}:
                for worker in self._workers.values():
                    if worker.pid == pid:
                        log.error("the engine does not understand a worker: it is killed", extra={"pid": pid})
                        worker.kill(Cause.BROKEN)

    def _let_listen(self) -> None:
        """Once and for all: later workers begin with it."""
        if self._may_listen:
            return
        self._may_listen = True
        for worker in self._workers.values():
            worker.tell({"do": "listen", "limit": self._limit})

    def _tell_ready(self) -> None:
        if self.ready and not self._told_ready and len(self._listening) == self._config.workers:
            self._told_ready = True
            log.info("ready", extra={"grpc": address(self._config.host, self._config.port), "metrics": self._metrics})
            print(f"READY grpc={address(self._config.host, self._config.port)} metrics={self._metrics}", flush=True)

    async def _watch(self) -> None:
        """Questions are counted, not seconds: while the machine stands still nobody asks, nor fails to answer."""
        while True:
            await self._next_time()
            if self.engine is not None and self.ready:
                _ask("the engine", self.engine)
            for index in self._listening:
                _ask(f"worker {index}", self._workers[index])

    async def _stop(self) -> None:
        """As Application.stop, in this order, too."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.tell({"do": "drain"})
        if self._told_ready and self._stop_asked.is_set():
            log.info("draining", extra={"seconds": self._config.drain_delay_s})
            await asyncio.sleep(self._config.drain_delay_s)
        within_s = self._config.grace_s + _MARGIN_S
        await asyncio.gather(*(worker.end(within_s) for worker in workers))
        if self._told_ready:
            log.info("drained")
        if self.engine is not None:
            await self.engine.end(within_s)
        log.info("stopped")

    def _kill(self) -> None:
        for process in (self.engine, *self._workers.values()):
            if process is not None:
                process.kill()


def _ask(who: str, process: Process) -> None:
    if process.ask() >= _MOST_UNANSWERED:
        log.error("%s does not answer: it is killed", who, extra={"pid": process.pid})
        process.kill(Cause.SILENT)


async def _again(who: str, process: Process, status: int, restarts: Restarts) -> None:
    """Wait until it should be started again. Raises StartError where it should not."""
    if process.failure:
        raise StartError(process.failure)
    wait_s = restarts.wait_s()
    if wait_s is None:
        raise StartError(f"{who} ends again and again, last with status {status}: the log says why")
    ended = {"pid": process.pid, "status": status, "in_seconds": wait_s}
    log.error("%s has ended and is started again", who, extra=ended)
    await asyncio.sleep(wait_s)


def _join(engine: Process, worker: Process) -> None:
    for process, end in zip((engine, worker), link(), strict=True):
        process.tell({"do": "attach", "worker": worker.pid}, end.descriptors)
        end.close()


def run(config: ServerConfig, progress: Progress) -> int:
    """Serve until told to stop. Returns the exit status; what went wrong is one line on stderr."""
    try:
        with closing(_reserved(config)) as reserved:
            return asyncio.run(Supervisor(config, reserved.getsockname()[1], progress).run())
    except StartError as error:
        tell_failure(error)
        return 1


def _reserved(config: ServerConfig) -> socket.socket:
    """The port, bound, so that it is ours as long as this lives; who listens on it shares the calls. Raises StartError
    where another server has it, though it might let us share it: that would be a lottery."""
    family, found = usable_address(config.host, config.port)
    reserved = socket.socket(family, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind(found)
    return reserved
