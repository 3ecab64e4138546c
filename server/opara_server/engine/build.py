"""Module → compiled model: export, lower, profile, select, capture, verify; one graph per bucket, one plan."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from opara_server.engine.behind import SearchBehind
from opara_server.engine.choice import UNREADABLE, Choice, read_choice, unsearched, write_choice
from opara_server.engine.choose import Search, saved_plan
from opara_server.engine.compiled import EXPORTING, MEASURING, CompiledModel, Progress, forward_only
from opara_server.engine.device import CapturedGraph, Device, open_device
from opara_server.engine.digests import calls_digest, sources_digest, tensors_digest
from opara_server.engine.errors import LoweringError, TuningError, first_line
from opara_server.engine.export import export_all
from opara_server.engine.finishing import Finisher
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.lower_whole import lower_whole
from opara_server.engine.lowerings import Lowerings
from opara_server.engine.options import ATEN, BuildOptions
from opara_server.engine.plan import SEQUENTIAL, BucketPlan, Plan
from opara_server.engine.plan_store import PlanStore, SavedPlan
from opara_server.engine.program_json import Json, ProgramReader, ProgramWriter
from opara_server.engine.spec import TensorSpec
from opara_server.engine.steps import Steps, at_once
from opara_server.engine.tensors import fill_random, lay_out_channels_last, static_inputs
from opara_server.engine.tuning import tune_in_children
from opara_server.engine.verify import Verifier
from opara_server.version import VERSION

log = logging.getLogger(__name__)

ALIGNMENT = 16  # bytes: compiled kernels count on it where a tensor has it

PLAN_FORMAT = 4  # of the saved plan and of what the engine does with it: raise it when a measurement no longer holds
NOT_IN_KEY = {"batch_sizes", "tune_behind", "cache_dir"}  # options: told as buckets; when and where, not what


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
    is moved to the device (and to channels_last where asked for), not copied. ``progress`` may wait when first told of
    MEASURING, until the device is idle. Raises EngineError: ModelError where the module cannot be served, DeviceError,
    CaptureError, VerificationError.
    """
    opened = open_device(device) if isinstance(device, str) else device
    try:
        with opened.bind():
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
        self.progress = forward_only(progress)
        self.buckets = sorted(set(options.batch_sizes), reverse=True)  # largest first: smaller graphs reuse its memory
        with torch.inference_mode(False):  # the weights stay ordinary tensors, for whoever else uses the module
            module.to(device.torch_device())
            if options.channels_last:
                lay_out_channels_last(module)
        self.flat = FlatModule(module, inputs, self.buckets[0], device.torch_device(), options.channels_last)
        for smaller in self.buckets[1:]:
            self.flat.check(smaller)
        verifier = Verifier(self.flat, device, options.tolerance)
        verifier.check_rows(self._inputs(self.buckets[0]), self.buckets[1:])
        self.finisher = Finisher(name, device, verifier)
        self.fallback_reason = ""
        self._store: PlanStore | None = None
        self._saved_under: Json = {}
        self._exports: Mapping[int, ExportedProgram] = {}
        self._untuned = False

    def run(self) -> CompiledModel:
        choices, reused = self._kept(), True
        if choices:
            try:
                graphs, plan = self._finish_all(choices, reused=True)
            except Exception as error:  # noqa: BLE001 - whatever it is: what was saved does not run, so it is searched for
                log.warning("ignoring the saved plan of %s: %s", self.name, first_line(error))
                choices = None
        if not choices:
            choices, reused = self._found(), False
            graphs, plan = self._finish_all(choices, reused=False)
        behind = SearchBehind(self) if self._untuned else None
        if self._store and not (reused or behind or self.fallback_reason):
            self._store.save(self._saved_under, self._written(plan, choices))
        self.device.trim()
        return CompiledModel(self.flat, self.device, graphs, plan, behind)

    def _finish_all(self, choices: dict[int, Choice], *, reused: bool) -> tuple[dict[int, CapturedGraph], Plan]:
        """The graphs that serve; ``choices`` become those that they are of."""
        graphs: dict[int, CapturedGraph] = {}
        plans: list[BucketPlan] = []
        try:
            for bucket in self._announced("capturing and verifying", 0.7, 1.0):
                held = self.device.held_bytes()
                graphs[bucket], choices[bucket] = at_once(self.finisher.finish(choices[bucket], reused=reused))
                steady_bytes = self.device.held_bytes() - held
                plans.append(choices[bucket].plan(bucket, steady_bytes, reused=reused))
        except BaseException:
            for graph in graphs.values():
                graph.close()
            raise
        reason = self.fallback_reason
        return graphs, Plan(self.name, self.device.kind, self.device.name, tuple(reversed(plans)), reason)

    def _kept(self) -> dict[int, Choice] | None:
        """What a saved plan says is to run for each batch size."""
        if not self.options.cache_dir:
            return None
        try:
            self._saved_under = self._key()
        except Exception as error:  # noqa: BLE001 - a module may raise anything where its calls are looked at
            log.warning("%s: no plan is kept: %s", self.name, first_line(error))
            return None
        self._store = PlanStore(self.options.cache_dir)
        kept = self._restored(self._store.load(self.name, self._saved_under))
        if kept is None:
            self._store.check(self.name)
        return kept

    def _found(self) -> dict[int, Choice]:
        """What is to run for each batch size, searched for. Raises CaptureError."""
        self.progress(EXPORTING, 0.0)
        try:
            self._exports = export_all(self.flat.module, {bucket: self._inputs(bucket) for bucket in self.buckets})
            if self.options.tune_behind:
                simplest = self._simplest(Lowerings(self.name, self._exports))
                self._untuned = True
                return simplest
            return self._tuned(self._exports)
        except LoweringError as error:
            self.fallback_reason = str(error)
            log.warning("%s runs as one sequential graph: %s", self.name, error)
        weights = [*self.flat.module.parameters(), *self.flat.module.buffers()]
        whole = {b: lower_whole(self.flat, weights, self._inputs(b)) for b in self.buckets}
        search = Search(Lowerings(self.name, {}), self.device, self.options, len(whole))
        with self.device.tuning():
            return {bucket: search.choose([whole[bucket]]) for bucket in self._announced(MEASURING, 0.1, 0.7)}

    def _simplest(self, lowerings: Lowerings) -> dict[int, Choice]:
        """What serves at once: nothing is searched for, so nothing is profiled."""
        return {
            bucket: unsearched(lowerings.simplest(bucket, self._inputs(bucket)))
            for bucket in self._announced("lowering", 0.1, 0.7)
        }

    def _tuned(self, exports: Mapping[int, ExportedProgram]) -> dict[int, Choice]:
        """Searched for in child processes on a GPU; where that fails, with a warning, here, among ATen operators; where
        nothing can be measured, these run in sequence."""
        options = self.options
        if self.device.kind == "cuda" and (options.policy, options.lowering) != (SEQUENTIAL, ATEN):
            try:
                found = self.search(lambda what, share: self.progress(what, 0.1 + 0.6 * share))
                return self._read_all(found)
            except (TuningError, *UNREADABLE) as error:
                log.warning("%s: no search for fused operators, PyTorch's own run: %s", self.name, first_line(error))
                options = replace(options, lowering=ATEN)
                self._store = None  # the next start may have better luck
        try:
            return self._searched(exports, options)
        except TuningError as error:
            log.warning("%s: nothing is searched for, operators run in sequence: %s", self.name, first_line(error))
            self._store = None
            return self._simplest(Lowerings(self.name, exports))

    def _searched(self, exports: Mapping[int, ExportedProgram], options: BuildOptions) -> dict[int, Choice]:
        """In this process."""
        search = Search(Lowerings(self.name, exports), self.device, options, len(exports))
        choices = {}
        with self.device.tuning():
            for bucket in self._announced(MEASURING, 0.1, 0.7):
                choices[bucket] = search.choose(search.lower(bucket, self._inputs(bucket)))
        found = saved_plan(self.name, self.device, choices, ProgramWriter(self._weights()))
        return self._read_all(found)

    def search(self, progress: Progress) -> SavedPlan:
        """In child processes; from any thread. Raises TuningError, LoweringError."""
        modules = {type(part).__module__ for part in self.flat.module.modules()}
        own = sorted(name for name in modules if not name.startswith(("torch.", "__main__")))
        device, inputs = self.device.torch_device(), self.flat.inputs
        return tune_in_children(self.name, device, inputs, self._exports, self.options, own, progress)

    def _restored(self, saved: SavedPlan | None) -> dict[int, Choice] | None:
        """The choices of a saved plan; of one that is not to be believed None, with a warning."""
        try:
            return None if saved is None else self._read_all(saved)
        except UNREADABLE as error:
            log.warning("ignoring the saved plan of %s: %s", self.name, first_line(error))
            return None

    def _read_all(self, saved: SavedPlan) -> dict[int, Choice]:
        """With one copy for all batch sizes of what was computed from weights. Raises UNREADABLE."""
        reader = self.reader(saved)
        return {bucket: at_once(self.read(saved, bucket, reader)) for bucket in self.buckets}

    def reader(self, saved: SavedPlan) -> ProgramReader:
        return ProgramReader(dict(self._weights()), saved.tensors, self.device.torch_device())

    def read(self, saved: SavedPlan, bucket: int, reader: ProgramReader) -> Steps[Choice]:
        """Bound to the model's weights. Raises UNREADABLE."""
        return read_choice(saved.choices[str(bucket)], saved.plan.bucket(bucket), reader, self._inputs(bucket))

    def save(self, saved: SavedPlan) -> None:
        if self._store:
            self._store.save(self._saved_under, saved)

    def _written(self, plan: Plan, choices: Mapping[int, Choice]) -> SavedPlan:
        writer = ProgramWriter(self._weights())
        written = {str(bucket): write_choice(choice, writer) for bucket, choice in choices.items()}
        return SavedPlan(plan, written, writer.tensors)

    def _weights(self) -> list[tuple[str, Tensor]]:
        module = self.flat.module
        return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]

    def _inputs(self, bucket: int) -> tuple[Tensor, ...]:
        return static_inputs(self.flat.inputs, bucket, self.device.torch_device(), self.options.channels_last)

    def _same_inputs(self, bucket: int) -> tuple[Tensor, ...]:
        """The same in every process: a module may make other calls for other values."""
        inputs = self._inputs(bucket)
        fill_random(inputs, self.flat.inputs, torch.Generator(self.device.torch_device()).manual_seed(0))
        return inputs

    def _announced(self, what: str, begin: float, end: float) -> Iterator[int]:
        for position, bucket in enumerate(self.buckets):
            self.progress(f"{what} batch size {bucket}", begin + (end - begin) * position / len(self.buckets))
            yield bucket

    def _key(self) -> Json:
        """Everything a measurement depends on. Raises whatever the module does where its calls are looked at."""
        return {
            "format": PLAN_FORMAT,
            "engine": [VERSION, sources_digest()],
            "device": self.device.fingerprint(),
            "inputs": [asdict(spec) for spec in self.flat.inputs],
            "buckets": self.buckets,
            "calls": [calls_digest(self.flat.module, self._same_inputs(bucket)) for bucket in self.buckets],
            "weights": tensors_digest(self._weights()),
            "unaligned": [name for name, weight in self._weights() if weight.data_ptr() % ALIGNMENT],
            "options": {name: value for name, value in asdict(self.options).items() if name not in NOT_IN_KEY},
        }
