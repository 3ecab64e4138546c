"""How one model gets from its folder to graphs that are ready to serve."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from opara_server.config import ServerConfig
from opara_server.engine.errors import EngineError, explained
from opara_server.engine.plan import Plan
from opara_server.model_config import ModelConfig
from opara_server.observe.metrics import Metrics
from opara_server.observe.occupancy import Sample, Sampler
from opara_server.observe.tracing import Tracer
from opara_server.serving.batcher import Batcher
from opara_server.serving.errors import ModelUnavailable
from opara_server.serving.executor import Executor, Worker
from opara_server.serving.lanes import Lanes
from opara_server.serving.limits import Limits
from opara_server.serving.models import ServedModel
from opara_server.serving.repository import Entry, RepositoryError
from opara_server.serving.staging import Compiled
from opara_server.serving.turns import InFlight, Share
from opara_server.settings import ConfigError

log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
"""Takes what is being done, and the share done, 0..1."""

Compile = Callable[[str, nn.Module, ModelConfig, Progress], Compiled]
"""Makes a module ready to run, on the thread that will run it. Raises EngineError."""


class LoadError(Exception):
    """The start-up cannot go on. str() is one message for the person who started the server."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that can serve, and what must be freed when it does not. ``samples``: of its streams, as it was
    warmed."""

    compiled: Compiled
    worker: Worker
    served: ServedModel
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """``failure``: the whole reason, for logs; ``told``: its kind, for anyone."""

    failure: str
    told: str


class Describe(Protocol):
    """Takes what has become known of the model ``name``: fields of ModelDescription."""

    def __call__(self, name: str, **known: object) -> None: ...


class Loader:
    """On the executor's thread."""

    def __init__(
        self,
        config: ServerConfig,
        executor: Executor,
        metrics: Metrics,
        sampler: Sampler,
        compile_with: Compile | None,
        describe: Describe,
        tracer: Tracer | None,
    ) -> None:
        self._config = config
        self._executor = executor
        self._metrics = metrics
        self._sampler = sampler
        self._compile = compile_with or self._compile_with_engine
        self._describe = describe
        self._tracer = tracer
        self._in_flight: defaultdict[str, InFlight] = defaultdict(InFlight)  # by the kind of device

    def load(self, entry: Entry, progress: Progress, *, tune_behind: bool = False) -> Loaded | NotLoaded:
        """The model, or why it could not be loaded, which the log has then, too. Raises what ``progress`` raises."""
        cause: BaseException | None = None
        try:
            return self._load(entry, progress, tune_behind)
        except ConfigError as error:
            failed = NotLoaded(str(error), "its name or its model.toml cannot be used")
        except RepositoryError as error:
            failed = NotLoaded(str(error), "its source or its weights cannot be used")
        except EngineError as error:
            failed = NotLoaded(str(error), "it cannot be compiled")
        except (LoadError, ModelUnavailable):
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the model's own code: it may raise anything
            failed, cause = NotLoaded(explained(error), "its code fails"), error
        log.error("model failed to load: %s", failed.failure, exc_info=cause, extra={"model": entry.name})
        return failed

    def _load(self, entry: Entry, progress: Progress, tune_behind: bool) -> Loaded:
        begin = time.monotonic()
        progress("loading", 0.0)
        config = entry.config().with_policy(self._config.policy)
        if tune_behind:
            config = config.model_copy(update={"tune_behind": True})
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
        log.info("model loaded", extra=summary(compiled.plan) | {"seconds": round(time.monotonic() - begin, 3)})
        return loaded

    def _warm(self, name: str, config: ModelConfig, compiled: Compiled) -> Loaded:
        """Run every bucket through its buffers, and measure how busy its streams are."""
        self._executor.bind(compiled.device)
        lanes = Lanes(compiled, config.lanes_on(compiled.plan.device))
        metrics = self._metrics.model(compiled.plan)
        limits = Limits.of(config, compiled.buckets)
        in_flight = self._in_flight[compiled.plan.device]
        batcher = Batcher(compiled.inputs, limits, metrics, self._executor.wake, in_flight=in_flight)
        samples: list[Sample] = []
        for bucket in compiled.buckets:
            timing = lanes.warm(bucket)
            batcher.ran(bucket, timing.total_s, timing.replay_s)
            if sample := self._sampler.take(name, compiled.plan.bucket(bucket), compiled.graph(bucket)):
                samples.append(sample)
        served = ServedModel(name, compiled.inputs, compiled.outputs, config.max_rows, compiled.plan, batcher)
        worker = Worker(name, batcher, lanes, metrics, Share(config.batching.weight), self._tracer)
        return Loaded(compiled, worker, served, tuple(samples))

    def _compile_with_engine(self, name: str, module: nn.Module, config: ModelConfig, progress: Progress) -> Compiled:
        from opara_server.engine.build import compile_model  # noqa: PLC0415 - only to load, and slow

        options = config.build_options(self._config.cache_dir)
        return compile_model(name, module, [i.spec for i in config.inputs], config.device, options, progress)


def summary(plan: Plan) -> dict[str, object]:
    """A plan as fields of a log line."""
    reason = {"fallback_reason": plan.fallback_reason} if plan.fallback_reason else {}
    return {
        "model": plan.model,
        "device": f"{plan.device} ({plan.device_name})",
        "policies": {b.batch_size: b.policy for b in plan.buckets},
        "speedups": {b.batch_size: round(b.speedup, 2) for b in plan.buckets},
        "saved": plan.reused,
        **reason,
    }
