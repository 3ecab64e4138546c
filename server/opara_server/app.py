"""The composition root: what a server is made of, in which order it starts, and in which it stops."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import grpc
import torch
import uvloop

from opara_server.config import ServerConfig
from opara_server.engine.kineto import start_kineto
from opara_server.model_config import may_use_a_gpu
from opara_server.observe.metrics import UNKNOWN_MODEL, Metrics
from opara_server.rpc.edge import make_edge, message_limit
from opara_server.rpc.front import SERVER_NAMES, Front, LocalFront, StartError, address
from opara_server.rpc.inference import Inference
from opara_server.rpc.oip import ModelCalls, ServerCalls
from opara_server.rpc.service import InferenceService
from opara_server.serving.executor import Executor
from opara_server.serving.registry import Compile, LoadError, ModelState, Progress, Registry
from opara_server.serving.repository import scan
from opara_server.settings import ConfigError
from opara_server.stopping import stop_on_signals
from opara_server.version import VERSION

log = logging.getLogger(__name__)

_LOAD_GRACE_S = 1.0  # a load can be ended only where it reports progress, which may be far away

OpenFront = Callable[[ServerConfig, Registry, Metrics], Front]


class Application:
    """One server: ``start``, ``wait`` until something asks it to stop, ``stop``; or a context manager around ``wait``.

    Everything in it lives as long as it serves; the addresses are known once started.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        compile_with: Compile | None = None,
        progress: Progress = lambda _what, _share: None,
        open_front: OpenFront | None = None,
    ) -> None:
        """On the event loop. ``compile_with``: instead of the engine. ``progress``: called on another thread while
        models load. ``open_front``: instead of a gRPC server in this process. Raises ConfigError."""
        self.grpc_address = ""
        self.metrics_address = ""
        self.serving = False
        self.stuck = False  # whether ``stop`` ran out of time: the device's thread may still be at work
        self._config = config
        self._progress = progress
        self.metrics = Metrics()
        self.metrics.build_info(version=VERSION, torch=torch.__version__, grpc=grpc.__version__)
        self._executor = Executor()
        self._registry = Registry(config, self._executor, self.metrics, compile_with)
        self._front = (open_front or _open_front)(config, self._registry, self.metrics)
        self._loop = asyncio.get_running_loop()
        self._stop_asked = asyncio.Event()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, then load: meanwhile the server answers that it is not ready. Returns early, and not ``serving``,
        where it is asked to stop before that. Raises StartError where an address is taken, LoadError."""
        self._executor.start()
        self._metrics_listen()
        await self._listen()
        self._registry.on_change(self._model_changed)
        if may_use_a_gpu(self._config.models):
            start_kineto()
        loading = asyncio.wrap_future(self._executor.run(lambda: self._registry.load_all(self._progress)))
        asked = asyncio.ensure_future(self._stop_asked.wait())
        await asyncio.wait((loading, asked), return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if loading.done():
            loading.result()
            self._set_overall(serving=True)
        else:
            loading.add_done_callback(_forget)  # stopping the executor ends it with an error

    async def wait(self) -> None:
        """Until ``ask_to_stop``."""
        await self._stop_asked.wait()

    def ask_to_stop(self) -> None:
        self._stop_asked.set()

    async def stop(self) -> None:
        """Tell who asks, keep serving for the drain delay, refuse new calls, finish those in flight, free the models:
        in this order, or requests are lost. Takes the drain delay and twice the grace at most."""
        self._front.drain()
        served = self.serving
        if served:
            log.info("draining", extra={"seconds": self._config.drain_delay_s})
            await asyncio.sleep(self._config.drain_delay_s)
        await self._front.stop(self._config.grace_s)
        grace_s = self._config.grace_s if served else _LOAD_GRACE_S
        self.stuck = not await asyncio.to_thread(self._executor.stop, grace_s)
        self.metrics.stop()
        log.info("stopped")

    def _metrics_listen(self) -> None:
        host, port = self._config.metrics_host, self._config.metrics_port
        try:
            port = self.metrics.start(host, port)
        except OSError as error:
            reason = error.strerror or error
            raise StartError(
                f"cannot serve metrics on {address(host, port)} (--metrics-host, --metrics-port): {reason}"
            ) from None
        self.metrics_address = address(host, port)

    async def _listen(self) -> None:
        self._set_overall(serving=False)
        for name, _ in self._registry.models():
            self._front.set(name, serving=False)
        self.grpc_address = await self._front.listen()

    def _set_overall(self, *, serving: bool) -> None:
        self.serving = serving
        for name in SERVER_NAMES:
            self._front.set(name, serving=serving)

    def _model_changed(self, name: str, state: ModelState) -> None:
        """On the executor's thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(self._set_model, name, state)

    def _set_model(self, name: str, state: ModelState) -> None:
        self._front.set(name, serving=state is ModelState.READY)
        if self.serving and self._registry.device_lost:
            self._set_overall(serving=False)


def run(config: ServerConfig, progress: Progress) -> int:
    """Serve until told to stop. Returns the exit status; what went wrong is one line on stderr."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            stuck = runner.run(_serve(config, progress))
    except (ConfigError, LoadError, StartError) as error:
        print(f"opara-server: {error}", file=sys.stderr)
        return 1
    if stuck:
        os._exit(0)  # the interpreter's own end might not survive a thread that is in native code
    return 0


async def _serve(config: ServerConfig, progress: Progress) -> bool:
    """Whether the device's thread may still be at work at the end."""
    app = Application(config, progress=progress)
    stop_on_signals(app.ask_to_stop)
    async with app:
        if app.serving:
            print(f"READY grpc={app.grpc_address} metrics={app.metrics_address}", flush=True)
        await app.wait()
    return app.stuck


def model_handlers(registry: Registry, metrics: Metrics, *, admin: bool) -> list[grpc.GenericRpcHandler[bytes, bytes]]:
    """The cold methods about models."""
    return [InferenceService(registry).handler(), ModelCalls(registry, metrics, admin=admin).handler()]


def _open_front(config: ServerConfig, registry: Registry, metrics: Metrics) -> LocalFront:
    edge = make_edge(config, largest_message(config), lambda code: metrics.request(UNKNOWN_MODEL, code, 0.0))
    front = LocalFront(config, edge, Inference(registry, metrics))
    server = ServerCalls(front.health.serving, admin=config.admin)
    front.add([server.handler(), *model_handlers(registry, metrics, admin=config.admin)])
    return front


def largest_message(config: ServerConfig) -> int:
    """Bytes of it that are taken. Models whose settings are wrong fail when they are loaded."""
    largest, name = 0, ""
    for entry in scan(config.models):
        with suppress(ConfigError):
            model = entry.config()
            largest, name = max(
                (largest, name), (model.max_rows * sum(i.spec.row_bytes for i in model.inputs), entry.name)
            )
    limit = message_limit(config, largest)
    if largest > limit:
        log.warning(
            "max_rows rows are %d bytes, but no message over %d is taken", largest, limit, extra={"model": name}
        )
    return limit


def _forget(loading: asyncio.Future[None]) -> None:
    """Take the exception of what nobody waits for any more."""
    if not loading.cancelled():
        loading.exception()
