"""The models of this server: their states, and how they get from a folder to serving."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import NoReturn

from torch import nn

from opara_server.config import ConfigError, ModelConfig, ServerConfig
from opara_server.engine.errors import EngineError
from opara_server.engine.plan import Plan
from opara_server.engine.spec import TensorSpec
from opara_server.observe import occupancy
from opara_server.observe.metrics import Metrics
from opara_server.serving.batcher import Batcher
from opara_server.serving.errors import ModelNotFound, ModelUnavailable
from opara_server.serving.executor import Executor, Worker
from opara_server.serving.improvement import Improvement
from opara_server.serving.limits import Limits
from opara_server.serving.repository import Entry, RepositoryError, scan
from opara_server.serving.staging import Compiled, Lane
from opara_server.serving.turns import InFlight, Share

log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
"""Takes what is being done, and the share done, 0..1."""

Compile = Callable[[str, nn.Module, ModelConfig, Progress], Compiled]
"""Makes a module ready to run, on the thread that will run it. Raises EngineError."""


class LoadError(Exception):
    """The start-up cannot go on. str() is one message for the person who started the server."""


class ModelState(StrEnum):
    LOADING = "LOADING"
    READY = "READY"
    FAILED = "FAILED"
    UNLOADED = "UNLOADED"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that is READY."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_rows: int  # of one request
    plan: Plan
    batcher: Batcher


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What is known of a model in any state. ``failure`` is for logs, never for the wire."""

    name: str
    state: ModelState
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    max_rows: int = 0
    plan: Plan | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class _Loaded:
    compiled: Compiled
    worker: Worker
    served: ServedModel


class Registry:
    """Queries are for any thread; loading and unloading for the executor's, from which ``on_change`` calls back."""

    def __init__(
        self, config: ServerConfig, executor: Executor, metrics: Metrics, compile_with: Compile | None = None
    ) -> None:
        """Finds the models. Raises ConfigError when there are none. The executor unloads them when it ends."""
        self._config = config
        self._executor = executor
        self._metrics = metrics
        self._compile = compile_with or self._compile_with_engine
        self._entries = scan(config.models)
        self._descriptions = {e.name: ModelDescription(e.name, ModelState.LOADING) for e in self._entries}
        self.generation = 0  # changes whenever what ``get`` gives may have
        self._loaded: dict[str, _Loaded] = {}
        self._in_flight: defaultdict[str, InFlight] = defaultdict(InFlight)  # by the kind of device
        self._lost: list[_Loaded] = []  # kept: on a lost device nothing can be freed
        self._callbacks: list[Callable[[str, ModelState], None]] = []
        for entry in self._entries:
            metrics.add_model(entry.name)
        executor.at_end(self.unload_all)
        executor.on_lost(self._device_lost)

    def models(self) -> list[tuple[str, ModelState]]:
        """By name."""
        return [(d.name, d.state) for d in self._descriptions.values()]

    def describe(self, name: str) -> ModelDescription:
        """Raises ModelNotFound."""
        if name not in self._descriptions:
            _not_found(name)
        return self._descriptions[name]

    def get(self, name: str) -> ServedModel:
        """Raises ModelNotFound, or ModelUnavailable unless the model is READY."""
        loaded = self._loaded.get(name)
        state = self.describe(name).state
        if loaded is None or state is not ModelState.READY:
            raise ModelUnavailable(f"model {name!r} is not ready: {state.value}")
        return loaded.served

    def on_change(self, callback: Callable[[str, ModelState], None]) -> None:
        """Call ``callback`` whenever a model changes its state from now on. Before ``load_all``."""
        self._callbacks.append(callback)

    def load_all(self, progress: Progress) -> None:
        """Load every model, in order of names; then all become READY together, since loading holds the device's thread.

        Raises LoadError when no model could be loaded, or with ``strict`` when any could not.
        """
        for index, entry in enumerate(self._entries):
            report = self._progress(progress, entry.name, index)
            try:
                self._loaded[entry.name] = self._load(entry, report)
            except (ConfigError, RepositoryError, EngineError) as error:
                self._failed(entry.name, str(error))
            except LoadError:
                raise
            except Exception as error:  # noqa: BLE001 - the model's own code: it may raise anything
                self._failed(entry.name, f"{type(error).__name__}: {error}", error)
        if not self._loaded:
            raise LoadError("no model could be loaded")
        for name, loaded in self._loaded.items():
            self._executor.attach(loaded.worker)
            self._change(name, state=ModelState.READY)
        for name, loaded in self._loaded.items():
            if loaded.compiled.behind is not None:
                done = partial(self._improved, name)
                Improvement(loaded.compiled, loaded.worker, self._executor, self._metrics, done).start()
        progress("ready", 1.0)

    def unload_all(self) -> None:
        """Refuse what is still queued and free the device."""
        for name, loaded in self._loaded.items():
            self._executor.detach(name)
            self._change(name, state=ModelState.UNLOADED)
            loaded.worker.batcher.close(drop_queued=True)  # of a model that was never attached
        for loaded in self._loaded.values():
            self._executor.bind(loaded.compiled.device)
            loaded.compiled.close()
            self._executor.bind(None)
        self._loaded = {}

    def _progress(self, progress: Progress, name: str, index: int) -> Progress:
        def report(doing: str, share: float) -> None:
            if self._executor.stopping:
                raise LoadError("stopped while loading")
            progress(f"{name}: {doing}", (index + share) / len(self._entries))

        return report

    def _load(self, entry: Entry, progress: Progress) -> _Loaded:
        begin = time.monotonic()
        progress("loading", 0.0)
        config = entry.config().with_policy(self._config.policy)
        inputs = tuple(i.spec for i in config.inputs)
        self._describe(entry.name, inputs=inputs, max_rows=config.max_rows)
        compiled = self._compile(entry.name, entry.module(config), config, progress)
        try:
            loaded = self._warm(entry.name, config, compiled)
        except BaseException:
            compiled.close()
            raise
        finally:
            self._executor.bind(None)
        self._describe(entry.name, inputs=compiled.inputs, outputs=compiled.outputs, plan=compiled.plan)
        log.info("model loaded", extra=_summary(compiled.plan) | {"seconds": round(time.monotonic() - begin, 3)})
        return loaded

    def _warm(self, name: str, config: ModelConfig, compiled: Compiled) -> _Loaded:
        """Run every bucket through its buffers, and measure how busy its streams are."""
        self._executor.bind(compiled.device)
        lane = Lane(compiled)
        metrics = self._metrics.model(compiled.plan)
        limits = Limits.of(config, compiled.buckets)
        in_flight = self._in_flight[compiled.plan.device]
        batcher = Batcher(compiled.inputs, limits, metrics, self._executor.wake, in_flight=in_flight)
        for bucket in compiled.buckets:
            batcher.ran(bucket, lane.warm(bucket))
            occupancy.sample(self._metrics, name, bucket, compiled.graph(bucket))
        served = ServedModel(name, compiled.inputs, compiled.outputs, config.max_rows, compiled.plan, batcher)
        return _Loaded(compiled, Worker(name, batcher, lane, metrics, Share(config.batching.weight)), served)

    def _compile_with_engine(self, name: str, module: nn.Module, config: ModelConfig, progress: Progress) -> Compiled:
        from opara_server.engine.build import compile_model  # noqa: PLC0415 - only to load, and slow

        options = config.build_options(self._config.cache_dir)
        return compile_model(name, module, [i.spec for i in config.inputs], config.device, options, progress)

    def _improved(self, name: str, plan: Plan) -> None:
        loaded = self._loaded[name]
        self._loaded[name] = replace(loaded, served=replace(loaded.served, plan=plan))
        self._describe(name, plan=plan)
        if plan.chosen != loaded.served.plan.chosen:
            log.info("model improved", extra=_summary(plan))

    def _failed(self, name: str, reason: str, error: Exception | None = None) -> None:
        log.error("model failed to load: %s", reason, exc_info=error, extra={"model": name})
        self._change(name, state=ModelState.FAILED, failure=reason)
        if self._config.strict:
            raise LoadError(f"model {name}: {reason}")

    def _device_lost(self, name: str) -> None:
        """Nothing runs on this kind of device any more, in this process; the server stays up and says so."""
        kind = self._loaded[name].served.plan.device
        lost = [other for other, loaded in self._loaded.items() if loaded.served.plan.device == kind]
        log.error("the device is lost: restart the server", extra={"device": kind, "models": lost})
        for other in lost:
            self._executor.detach(other)
            self._lost.append(self._loaded.pop(other))
            self._change(other, state=ModelState.FAILED, failure="its device is lost")

    def _describe(self, name: str, **known: object) -> None:
        self._descriptions[name] = replace(self._descriptions[name], **known)  # type: ignore[arg-type]
        self.generation += 1

    def _change(self, name: str, **known: object) -> None:
        self._describe(name, **known)
        state = self._descriptions[name].state
        self._metrics.set_ready(name, ready=state is ModelState.READY)
        log.info("model %s", state.value, extra={"model": name})
        for callback in self._callbacks:
            callback(name, state)


def _not_found(name: str) -> NoReturn:
    shown = name if len(name) <= 64 else f"{name[:64]}..."  # the client chose it: it may be megabytes long
    raise ModelNotFound(f"no model {shown!r}")


def _summary(plan: Plan) -> dict[str, object]:
    """A plan as fields of a log line."""
    return {
        "model": plan.model,
        "device": f"{plan.device} ({plan.device_name})",
        "policies": {b.batch_size: b.policy for b in plan.buckets},
        "fallback_reason": plan.fallback_reason,
    }
