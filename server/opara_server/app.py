"""The composition root: what a server is made of, in which order it starts, and in which it stops."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

import grpc
import torch
import uvloop

from opara_server.config import ServerConfig
from opara_server.engine import torch_logs
from opara_server.engine.kineto import start_kineto
from opara_server.model_config import may_use_a_gpu
from opara_server.observe.gpu import GpuCollector
from opara_server.observe.logs import tell_failure
from opara_server.observe.metrics import UNKNOWN_MODEL, Metrics
from opara_server.observe.tracing import Tracer, open_tracer
from opara_server.rpc.edge import make_edge, message_limit
from opara_server.rpc.front import SERVER_NAMES, Front, LocalFront, StartError, address
from opara_server.rpc.inference import Inference
from opara_server.rpc.oip import ModelCalls, ServerCalls
from opara_server.rpc.service import InferenceService
from opara_server.rpc.turn import Turn
from opara_server.serving.executor import Executor
from opara_server.serving.models import ModelDescription
from opara_server.serving.registry import Compile, LoadError, ModelState, Progress, Registry
from opara_server.serving.repository import scan
from opara_server.serving.sampling import sample_regularly
from opara_server.serving.status import pages
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
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """On the event loop. ``compile_with``: instead of the engine. ``progress``: called on another thread while
        models load. ``open_front``: instead of a gRPC server in this process. ``metrics``: to count in. ``tracer``:
        instead of the environment's; closed in the end. Raises ConfigError."""
        torch_logs.join_others()
        self.grpc_address = ""
        self.metrics_address = ""
        self.serving = False
        self.failed = False  # whether it has ended by itself: nothing runs any more
        self.stuck = False  # whether ``stop`` ran out of time: the device's thread may still be at work
        self._config = config
        self._progress = progress
        self.metrics = metrics or Metrics()
        self.metrics.registry.register(GpuCollector(_gpu_uuid))
        self.metrics.build_info(version=VERSION, torch=torch.__version__, grpc=grpc.__version__)
        self._tracer = tracer or (open_tracer() if config.tracing else None)
        self._executor = Executor()
        self._executor.on_failed(self._executor_failed)
        self._registry = Registry(config, self._executor, self.metrics, compile_with, self._tracer)
        self.message_limit = largest_message(config)
        local = partial(_open_front, limit=self.message_limit, executor=self._executor, tracer=self._tracer)
        open_front = open_front or local
        self._front = open_front(config, self._registry, self.metrics)
        self._loop = asyncio.get_running_loop()
        self._stop_asked = asyncio.Event()
        self._sampling: asyncio.Task[None] | None = None

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
        """Listen, then load: meanwhile the server answers that it is not ready; or the other way round, as configured.
        Returns early, and not ``serving``, where it is asked to stop before that. Raises StartError where an address is
        taken, LoadError."""
        self._executor.start()
        self._metrics_listen()
        self._not_yet_serving()
        if not self._config.listen_when_ready:
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
            if self._config.listen_when_ready:
                await self._listen()
            self._set_overall(serving=True)
            log.info("ready", extra=self._addresses())
            if self._config.sample_streams_every_s:
                regularly = sample_regularly(self._registry, self._config.sample_streams_every_s)
                self._sampling = asyncio.create_task(regularly)
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
        if self._sampling is not None:
            self._sampling.cancel()
        await self._front.stop(self._config.grace_s)
        if served:
            log.info("drained")
        grace_s = self._config.grace_s if served else _LOAD_GRACE_S
        self.stuck = not await asyncio.to_thread(self._executor.stop, grace_s)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)
        self.metrics.stop()
        log.info("stopped")

    def _metrics_listen(self) -> None:
        host, port = self._config.metrics_host, self._config.metrics_port
        try:
            port = self.metrics.start(host, port, pages(self._registry))
        except OSError as error:
            reason = error.strerror or error
            raise StartError(
                f"cannot serve metrics on {address(host, port)} (--metrics-host, --metrics-port): {reason}"
            ) from None
        self.metrics_address = address(host, port)

    def _not_yet_serving(self) -> None:
        self._set_overall(serving=False)
        for name, _ in self._registry.models():
            self._front.set(name, serving=False)

    async def _listen(self) -> None:
        self.grpc_address = await self._front.listen()
        log.info("listening", extra=self._addresses())

    def _addresses(self) -> dict[str, str]:
        """As fields of a log line; a front in other processes has its own."""
        known = {"grpc": self.grpc_address, "metrics": self.metrics_address}
        return {name: where for name, where in known.items() if where}

    def _set_overall(self, *, serving: bool) -> None:
        self.serving = serving
        for name in SERVER_NAMES:
            self._front.set(name, serving=serving)

    def _executor_failed(self) -> None:
        """On the executor's thread. Who started this process is to start another."""
        self.failed = True
        self._on_loop(self.ask_to_stop)

    def _model_changed(self, name: str, state: ModelState) -> None:
        """On the executor's thread."""
        if state is ModelState.READY:
            self._compare_with_limit(self._registry.describe(name))
        self._on_loop(self._set_model, name, state)

    def _compare_with_limit(self, model: ModelDescription) -> None:
        """Of a model that came later, or with a limit that is set, requests may be larger than what is taken."""
        row_bytes = sum(spec.row_bytes for spec in model.inputs)
        if model.max_rows * row_bytes > self.message_limit:
            log.warning(
                "a request's %d rows may have %d bytes, but larger messages than %d are refused until the server is "
                "started again, with this model or with --max-message-bytes",
                model.max_rows,
                model.max_rows * row_bytes,
                self.message_limit,
                extra={"model": model.name},
            )

    def _on_loop(self, function: Callable[..., None], *args: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(function, *args)

    def _set_model(self, name: str, state: ModelState) -> None:
        self._front.set(name, serving=state is ModelState.READY)
        if self.serving and self._registry.device_lost:
            self._set_overall(serving=False)


def run(config: ServerConfig, progress: Progress) -> int:
    """Serve until told to stop. Returns the exit status; what went wrong is one line on stderr."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            app = runner.run(_serve(config, progress))
    except (ConfigError, LoadError, StartError) as error:
        tell_failure(error)
        return 1
    status = 1 if app.failed else 0
    if app.stuck:
        os._exit(status)  # the interpreter's own end might not survive a thread that is in native code
    return status


async def _serve(config: ServerConfig, progress: Progress) -> Application:
    """As it is at the end."""
    app = Application(config, progress=progress)
    stop_on_signals(app.ask_to_stop)
    async with app:
        if app.serving:
            print(f"READY grpc={app.grpc_address} metrics={app.metrics_address}", flush=True)
        await app.wait()
    return app


def model_handlers(registry: Registry, metrics: Metrics, *, admin: bool) -> list[grpc.GenericRpcHandler[bytes, bytes]]:
    """The cold methods about models."""
    return [InferenceService(registry, admin=admin).handler(), ModelCalls(registry, metrics, admin=admin).handler()]


def _open_front(
    config: ServerConfig, registry: Registry, metrics: Metrics, limit: int, executor: Executor, tracer: Tracer | None
) -> LocalFront:
    edge = make_edge(config, limit, lambda code: metrics.refuse(UNKNOWN_MODEL, code, 0.0))
    turn = Turn()
    if not torch.cuda.is_available():  # there every batch is the executor's, which is woken at once
        turn.add(executor.help)
    front = LocalFront(config, edge, Inference(registry, metrics, tracer, config.log_requests), turn)
    server = ServerCalls(front.health.serving, admin=config.admin)
    front.add([server.handler(), *model_handlers(registry, metrics, admin=config.admin)])
    return front


def _gpu_uuid() -> str | None:
    """Of the GPU in use; None while there is none. torch is not made to look for one."""
    return f"GPU-{torch.cuda.get_device_properties().uuid}" if torch.cuda.is_initialized() else None


def largest_message(config: ServerConfig) -> int:
    """Bytes of it that are taken. Models whose settings are wrong fail when they are loaded."""
    largest = 0
    for entry in scan(config.models):
        with suppress(ConfigError):
            model = entry.config()
            largest = max(largest, model.max_rows * sum(i.spec.row_bytes for i in model.inputs))
    return message_limit(config, largest)


def _forget(loading: asyncio.Future[None]) -> None:
    """Take the exception of what nobody waits for any more."""
    if not loading.cancelled():
        loading.exception()
