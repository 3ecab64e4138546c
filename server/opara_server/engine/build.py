"""Module → compiled model: export, lower, profile, select, capture, verify; one graph per bucket, one plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from opara_server.engine.capture import capture
from opara_server.engine.choice import Choice, Runnable, read_choice, write_choice
from opara_server.engine.choose import Search
from opara_server.engine.device import CapturedGraph, Device, open_device
from opara_server.engine.digests import graph_digest, tensors_digest
from opara_server.engine.errors import CaptureError, VerificationError, first_line
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.lowerings import Lowerings
from opara_server.engine.options import BuildOptions
from opara_server.engine.plan import BucketPlan, Plan
from opara_server.engine.plan_store import PlanStore, SavedPlan
from opara_server.engine.program_json import Json, ProgramReader, ProgramWriter, UnsavableError
from opara_server.engine.select import measure
from opara_server.engine.spec import TensorSpec
from opara_server.engine.verify import Verifier
from opara_server.version import VERSION

log = logging.getLogger(__name__)

PLAN_FORMAT = 3  # of the saved plan and of what the engine does with it: raise it when a measurement no longer holds

Progress = Callable[[str, float], None]  # what is being done, and the share that is done: 0..1


class CompiledModel:
    """A model that is ready to run. All use from one thread at a time, inside ``device.bind()``."""

    def __init__(self, flat: FlatModule, device: Device, graphs: Mapping[int, CapturedGraph], plan: Plan) -> None:
        self.inputs = flat.inputs
        self.outputs = flat.outputs
        self.device = device
        self.buckets = tuple(sorted(graphs))
        self.plan = plan
        self.rebuild = flat.rebuild  # a flat tuple of outputs → the module's own structure
        self._graphs = dict(graphs)

    def graph(self, bucket: int) -> CapturedGraph:
        return self._graphs[bucket]

    def close(self) -> None:
        """Free graphs, their memory and streams. The device must be idle."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self.device.close()


def compile_model(
    name: str,
    module: nn.Module,
    inputs: Sequence[TensorSpec],
    device: str | Device,
    options: BuildOptions,
    progress: Progress = lambda _what, _share: None,
) -> CompiledModel:
    """Make ``module`` ready to run on ``device`` ("auto", "cuda", "cpu") at each of the options' batch sizes.

    A device that is open already becomes the model's own: it is closed with the model, or here on an error. The module
    is moved to the device (and to channels_last where asked for), not copied. Raises EngineError: ModelError where the
    module cannot be served, DeviceError, CaptureError, VerificationError.
    """
    opened = open_device(device) if isinstance(device, str) else device
    try:
        with opened.bind(), opened.tuning():
            return _Build(name, module, inputs, opened, options, progress).run()
    except BaseException:
        opened.close()
        raise


class _Build:
    """One model's way through the engine; attributes are what later stages share."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        inputs: Sequence[TensorSpec],
        device: Device,
        options: BuildOptions,
        progress: Progress,
    ) -> None:
        self.name = name
        self.device = device
        self.options = options
        self.progress = progress
        self.buckets = sorted(set(options.batch_sizes), reverse=True)  # largest first: smaller graphs reuse its memory
        with torch.inference_mode(False):  # the weights stay ordinary tensors, for whoever else uses the module
            module.to(device.torch_device())
            if options.channels_last:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.flat = FlatModule(module, inputs, self.buckets[0], device.torch_device(), options.channels_last)
        self.lowerings = Lowerings(name, self.flat, device, options)
        for smaller in self.buckets[1:]:
            self.flat.check(smaller)
        self.verifier = Verifier(self.flat, device, options.tolerance)
        self.verifier.check_rows(self.lowerings.inputs(self.buckets[0]), self.buckets[1:])

    def run(self) -> CompiledModel:
        self.progress("exporting", 0.0)
        exports = self.lowerings.exports(self.buckets)
        store = PlanStore(self.options.cache_dir) if self.options.cache_dir and exports else None
        key = self._key(exports) if store else {}  # reads every weight
        kept = self._restored(store.load(self.name, key)) if store else None
        choices = kept or self._shared(self._search())
        graphs: dict[int, CapturedGraph] = {}
        plans: list[BucketPlan] = []
        for bucket in self._announced("capturing and verifying", 0.7, 1.0):
            held = self.device.held_bytes()
            graphs[bucket], choices[bucket] = self._finish(choices[bucket])
            steady_bytes = self.device.held_bytes() - held
            plans.append(choices[bucket].plan(bucket, steady_bytes, reused=kept is not None))
        reason = self.lowerings.fallback_reason
        plan = Plan(self.name, self.device.kind, self.device.name, tuple(reversed(plans)), reason)
        if store and kept is None:
            self._save(store, key, plan, choices)
        self.device.trim()
        return CompiledModel(self.flat, self.device, graphs, plan)

    def _search(self) -> dict[int, Choice]:
        """By batch size the best of all candidates, within the tuning budget."""
        programs = self.lowerings.simplest(self.buckets)
        budget_s = self.options.tuning_budget_s / len(self.buckets)
        search = Search(self.lowerings, self.device, self.options)
        return {
            bucket: search.choose(bucket, programs[bucket], budget_s)
            for bucket in self._announced("measuring", 0.1, 0.7)
        }

    def _shared(self, choices: dict[int, Choice]) -> dict[int, Choice]:
        """With one copy of what the programs of all batch sizes were given and have computed from weights: as they will
        be read when the plan is used again."""
        writer = ProgramWriter(self._weights())
        try:
            written = {bucket: write_choice(choice, writer) for bucket, choice in choices.items()}
        except UnsavableError as error:
            log.debug("the programs of %s cannot be saved: %s", self.name, error)
            return choices
        reader = ProgramReader(self._weights(), writer.tensors, self.device.torch_device())
        plans = {bucket: choice.plan(bucket, 0, reused=False) for bucket, choice in choices.items()}
        return self._read(written, plans, reader)

    def _restored(self, saved: SavedPlan | None) -> dict[int, Choice] | None:
        """The choices of a saved plan; of one that is not to be believed None, with a warning."""
        if saved is None:
            return None
        reader = ProgramReader(self._weights(), saved.tensors, self.device.torch_device())
        try:
            plans = {bucket: saved.plan.bucket(bucket) for bucket in self.buckets}
            written = {bucket: saved.choices[str(bucket)] for bucket in self.buckets}
            return self._read(written, plans, reader)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            log.warning("ignoring the saved plan of %s: %s", self.name, first_line(error))
            return None

    def _read(
        self, written: Mapping[int, Json], plans: Mapping[int, BucketPlan], reader: ProgramReader
    ) -> dict[int, Choice]:
        return {b: read_choice(data, plans[b], reader, self.lowerings.inputs(b)) for b, data in written.items()}

    def _save(self, store: PlanStore, key: Json, plan: Plan, choices: Mapping[int, Choice]) -> None:
        writer = ProgramWriter(self._weights())
        try:
            written = {str(bucket): write_choice(choice, writer) for bucket, choice in choices.items()}
        except UnsavableError:
            return  # said before
        store.save(key, SavedPlan(plan, written, writer.tensors))

    def _weights(self) -> dict[str, Tensor]:
        return {**dict(self.flat.module.named_parameters()), **dict(self.flat.module.named_buffers())}

    def _announced(self, what: str, begin: float, end: float) -> Iterator[int]:
        for position, bucket in enumerate(self.buckets):
            self.progress(f"{what} batch size {bucket}", begin + (end - begin) * position / len(self.buckets))
            yield bucket

    def _finish(self, choice: Choice) -> tuple[CapturedGraph, Choice]:
        """The graph that will serve: verified, measured once more; the simplest where the chosen one fails either."""
        if choice.winner == 0:
            return self._verified(self._capture(choice.simplest)), choice
        try:
            graph = self._verified(self._capture(choice.best))
        except (CaptureError, VerificationError) as error:
            log.warning("%s: %s failed, sequential runs instead: %s", self.name, choice.chosen.policy, error)
            reason = "wrong numbers" if isinstance(error, VerificationError) else "cannot be captured"
            return self._verified(self._capture(choice.simplest)), choice.falling_back(reason)
        sequential = self._capture(choice.simplest)
        before, now = measure([sequential, graph], self.device)
        if now.median < before.median:
            sequential.close()
            return graph, choice.confirmed(before.median, now.median)
        log.warning("%s: measured again, %s is slower than sequential, which runs", self.name, choice.chosen.policy)
        graph.close()
        return self._verified(sequential), choice.falling_back("slower than sequential when measured again")

    def _capture(self, runnable: Runnable) -> CapturedGraph:
        return capture(runnable.program, runnable.schedule, self.device)

    def _verified(self, graph: CapturedGraph) -> CapturedGraph:
        try:
            error = self.verifier.check(graph)
        except BaseException:
            graph.close()
            raise
        log.debug("%s: error %.1e against float64", self.name, error)
        return graph

    def _key(self, exports: Sequence[ExportedProgram]) -> Json:
        """Everything a measurement depends on."""
        return {
            "format": PLAN_FORMAT,
            "engine": VERSION,
            "device": self.device.fingerprint(),
            "inputs": [asdict(spec) for spec in self.flat.inputs],
            "buckets": self.buckets,
            "graphs": [graph_digest(exported) for exported in exports],
            "weights": tensors_digest(self._weights().values()),
            "options": {
                "policy": self.options.policy,
                "lowering": self.options.lowering,
                "tuning_budget_s": self.options.tuning_budget_s,
                "channels_last": self.options.channels_last,
                "priorities": self.options.priorities,
                "tolerance": self.options.tolerance,
            },
        }
