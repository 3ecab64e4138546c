"""The models of this server: their states, and how they get from a folder to serving."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

from opara_server.config import ServerConfig
from opara_server.engine.plan import Plan
from opara_server.model_config import MODEL_FILE
from opara_server.observe.metrics import Metrics
from opara_server.observe.occupancy import Sample, Sampler
from opara_server.observe.tracing import Tracer
from opara_server.serving import garbage
from opara_server.serving.errors import InvalidInput, ModelUnavailable, Unsupported
from opara_server.serving.executor import Executor
from opara_server.serving.improvement import Improvement
from opara_server.serving.loading import Compile, Loaded, Loader, LoadError, NotLoaded, Progress, summary
from opara_server.serving.models import ModelDescription, ModelState, ServedModel, not_found, not_ready
from opara_server.serving.pins import Pins
from opara_server.serving.repository import Entry, no_models, scan
from opara_server.settings import ConfigError

__all__ = ["Compile", "LoadError", "ModelDescription", "ModelState", "Progress", "Registry", "ServedModel"]

log = logging.getLogger(__name__)


class Registry:
    """Queries are for any thread, as are ``load``, ``unload`` and ``profile``, which happen on the executor's; the rest
    is the executor's, from which ``on_change`` calls back."""

    def __init__(
        self,
        config: ServerConfig,
        executor: Executor,
        metrics: Metrics,
        compile_with: Compile | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Finds the models. Raises ConfigError when there are none. The executor unloads them when it ends."""
        self._config = config
        self._executor = executor
        self._metrics = metrics
        self._sampler = Sampler(metrics)
        self._loader = Loader(config, executor, metrics, self._sampler, compile_with, self._describe, tracer)
        self._entries = scan(config.models)
        self._descriptions = {e.name: ModelDescription(e.name, ModelState.LOADING) for e in self._entries}
        self.generation = 0  # changes whenever what ``get`` gives may have
        self._loaded: dict[str, Loaded] = {}
        self._searches: dict[str, Improvement] = {}
        self._lost: list[Loaded] = []  # kept: on a lost device nothing can be freed
        self._callbacks: list[Callable[[str, ModelState], None]] = []
        self.pins = Pins(executor)  # of workers' memory
        if others := [folder.name for folder in no_models(config.models)]:
            log.info("folders without a %s are no models", MODEL_FILE, extra={"folders": others})
        for entry in self._entries:
            metrics.add_model(entry.name)
        executor.at_end(self.unload_all)
        executor.on_lost(self._device_lost)

    def models(self) -> list[tuple[str, ModelState]]:
        """By name."""
        return sorted((d.name, d.state) for d in list(self._descriptions.values()))

    @property
    def device_lost(self) -> bool:
        """Whether models have lost theirs, for as long as the process lives."""
        return bool(self._lost)

    def describe(self, name: str) -> ModelDescription:
        """Raises ModelNotFound."""
        if name not in self._descriptions:
            not_found(name)
        return self._descriptions[name]

    def get(self, name: str) -> ServedModel:
        """Raises ModelNotFound, or ModelUnavailable unless the model is READY."""
        loaded = self._loaded.get(name)
        state = self.describe(name).state
        if loaded is None or state is not ModelState.READY:
            not_ready(name, state)
        return loaded.served

    def batch_sizes(self) -> list[tuple[str, int]]:
        """Of every model that is READY."""
        ready = [(name, self._loaded.get(name)) for name, state in self.models() if state is ModelState.READY]
        return [(name, size) for name, loaded in ready if loaded is not None for size in loaded.compiled.buckets]

    def samples(self, name: str) -> Mapping[int, Sample]:
        """By batch size what the last trace showed; of no model none."""
        return self._sampler.last(name)

    def on_change(self, callback: Callable[[str, ModelState], None]) -> None:
        """Call ``callback`` whenever a model changes its state from now on. Before ``load_all``."""
        self._callbacks.append(callback)

    def load_all(self, progress: Progress) -> None:
        """Load every model, in order of names; then all become READY together, since loading holds the device's thread.

        Raises LoadError when no model could be loaded, or with ``strict`` when any could not.
        """
        for index, entry in enumerate(self._entries):
            loaded = self._loader.load(entry, self._progress(progress, entry.name, index))
            if not isinstance(loaded, NotLoaded):
                self._loaded[entry.name] = loaded
                self.pins.use(loaded.compiled.device)
                continue
            self._change(entry.name, state=ModelState.FAILED, failure=loaded.failure, told=loaded.told)
            if self._config.strict:
                raise LoadError(f"model {entry.name}: {loaded.failure}")
        if not self._loaded:
            raise LoadError("no model could be loaded")
        garbage.keep()
        for name, loaded in self._loaded.items():
            self._serve(name, loaded)
        for name, loaded in self._loaded.items():
            self._improve(name, loaded)
        progress("ready", 1.0)

    def load(self, name: str) -> Future[None]:
        """Load a model of the folder, where it may be new, while others serve. Their requests wait meanwhile, but for
        no search: that goes on behind. One that serves is loaded anew, and serves until then; its code is not.

        The future raises ModelNotFound, ModelUnavailable where it cannot be loaded; one that serves then goes on.
        """
        return self._executor.run(partial(self._tidied, partial(self._load_now, name)))

    def unload(self, name: str) -> Future[None]:
        """Answer what waits for a model, and free it. The future raises ModelNotFound."""
        return self._executor.run(partial(self._tidied, partial(self._unload_now, name)))

    def profile(self, name: str, batch_size: int) -> Future[Sample]:
        """Trace a few replays of what serves a batch size, with no batch in the air; requests wait meanwhile, and those
        that do run before the next job does. The future raises ModelNotFound, ModelUnavailable unless the model is
        READY, InvalidInput where it has no such batch size, Unsupported where replays cannot be traced.
        """
        return self._executor.run(partial(self._profile_now, name, batch_size))

    def _profile_now(self, name: str, batch_size: int) -> Sample:
        self.get(name)
        loaded = self._loaded[name]
        if batch_size not in loaded.compiled.buckets:
            raise InvalidInput(f"model {name!r} has no batch size {batch_size}: {list(loaded.compiled.buckets)}")
        self._executor.bind(loaded.compiled.device)
        try:
            bucket = loaded.compiled.plan.bucket(batch_size)
            sample = self._sampler.sample(name, bucket, loaded.compiled.graph(batch_size))
            if sample is None:
                self._executor.check_device(loaded.worker)
                raise Unsupported("replays cannot be traced here: the server's log says why")
            return sample
        finally:
            self._executor.bind(None)

    def _tidied(self, change: Callable[[], None]) -> None:
        try:
            change()
        finally:
            garbage.look_again()  # a job that holds up all batches: so does this, now and not under the next load

    def _load_now(self, name: str) -> None:
        entry, old = self._entry(name), self._loaded.get(name)
        if name not in self._descriptions:
            self._metrics.add_model(name)
            self._descriptions[name] = ModelDescription(name, ModelState.LOADING)
        known = self._descriptions[name]
        if old is None:
            self._change(name, state=ModelState.LOADING, failure="", told="")
        new = self._loader.load(entry, self._stop_when_told, tune_behind=True)
        if isinstance(new, NotLoaded):
            if old is None:
                self._change(name, state=ModelState.FAILED, failure=new.failure, told=new.told)
            else:
                self._descriptions[name] = known
                self.generation += 1
            raise ModelUnavailable(f"model {name!r} could not be loaded: the server's log says why")
        self._loaded[name] = new
        self.pins.use(new.compiled.device)
        self._describe(name)  # from now on requests go to the new one
        if old is not None:
            self._free(name, old)
        if self._loaded.get(name) is not new:
            raise ModelUnavailable(f"model {name!r} has lost its device")
        self._serve(name, new)
        self._improve(name, new)

    def _unload_now(self, name: str) -> None:
        self.describe(name)
        loaded = self._loaded.get(name)
        if loaded is None:
            return
        self._change(name, state=ModelState.UNLOADED)
        self._free(name, loaded)
        self._loaded.pop(name, None)

    def _serve(self, name: str, loaded: Loaded) -> None:
        batcher = loaded.worker.batcher  # all that the metrics keep of it
        self._executor.attach(loaded.worker)
        self._metrics.show(loaded.compiled.plan)
        self._metrics.watch_queue(name, lambda: batcher.waiting_rows)
        self._sampler.replace(name, loaded.samples)
        self._change(name, state=ModelState.READY)

    def _entry(self, name: str) -> Entry:
        """Raises ModelNotFound, ModelUnavailable where the folder cannot be used."""
        try:
            found = next((e for e in scan(self._config.models) if e.name == name), None)
        except ConfigError as error:
            log.error("the models cannot be listed: %s", error)
            raise ModelUnavailable("the folder of models cannot be read: the server's log says why") from None
        if found is None:
            not_found(name)
        return found

    def _free(self, name: str, loaded: Loaded) -> None:
        """Once what waits for it is answered."""
        if search := self._searches.pop(name, None):
            search.abandon()
        self._executor.finish(name)
        if any(lost.served.plan.device == loaded.served.plan.device for lost in self._lost):
            self._lost.append(loaded)
            return
        self._executor.bind(loaded.compiled.device)
        loaded.compiled.close()
        self._executor.bind(None)

    def _improve(self, name: str, loaded: Loaded) -> None:
        """Start the search behind, where there is one."""
        if loaded.compiled.behind is not None:
            done = partial(self._improved, name)
            search = Improvement(loaded.compiled, loaded.worker, self._executor, self._metrics, self._sampler, done)
            self._searches[name] = search
            search.start()

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

    def _stop_when_told(self, _doing: str, _share: float) -> None:
        if self._executor.stopping:
            raise ModelUnavailable("the server is shutting down")

    def _improved(self, name: str, plan: Plan) -> None:
        loaded = self._loaded[name]
        self._loaded[name] = replace(loaded, served=replace(loaded.served, plan=plan))
        self._metrics.show(plan)
        self._describe(name, plan=plan)
        if plan.chosen != loaded.served.plan.chosen:
            log.info("model improved", extra=summary(plan))
        garbage.keep()

    def _device_lost(self, name: str) -> None:
        """Nothing runs on this kind of device any more, in this process; the server stays up and says so."""
        kind = self._loaded[name].served.plan.device
        lost = [other for other, loaded in self._loaded.items() if loaded.served.plan.device == kind]
        log.error("the device is lost: restart the server", extra={"device": kind, "models": lost})
        for other in lost:
            self._executor.detach(other)
            self._lost.append(self._loaded.pop(other))
            self._forget(other)
            self._change(other, state=ModelState.FAILED, failure="its device is lost", told="its device is lost")

    def _describe(self, name: str, **known: object) -> None:
        self._descriptions[name] = replace(self._descriptions[name], **known)  # type: ignore[arg-type]
        self.generation += 1

    def _change(self, name: str, **known: object) -> None:
        self._describe(name, **known)
        state = self._descriptions[name].state
        if state is ModelState.UNLOADED:
            self._forget(name)
        else:
            self._metrics.set_ready(name, ready=state is ModelState.READY)
        log.info("model %s", state.value, extra={"model": name})
        for callback in self._callbacks:
            callback(name, state)

    def _forget(self, name: str) -> None:
        """What is told of a model that serves is told no more."""
        self._sampler.replace(name, ())
        self._metrics.forget(name)
