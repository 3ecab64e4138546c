"""Module → compiled model: export, lower, profile, select, capture, verify; one graph per bucket, one plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from opara_server.engine.capture import capture
from opara_server.engine.device import CapturedGraph, Device, open_device
from opara_server.engine.errors import CaptureError, EngineError, LoweringError, VerificationError, first_line
from opara_server.engine.export import export_dynamic, export_static
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.lower_aten import lower
from opara_server.engine.lower_whole import lower_whole
from opara_server.engine.options import BuildOptions
from opara_server.engine.plan import BucketPlan, Plan, PlanStore
from opara_server.engine.policies import check_policy
from opara_server.engine.program import Program
from opara_server.engine.select import Choice, contenders, measure, select
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import static_inputs
from opara_server.engine.verify import Verifier
from opara_server.version import VERSION

log = logging.getLogger(__name__)

PLAN_FORMAT = 1  # of the saved plan and of what the engine does with it: raise it when a measurement no longer holds

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
        for smaller in self.buckets[1:]:
            self.flat.check(smaller)
        self.verifier = Verifier(self.flat, device, options.tolerance)
        self.verifier.check_rows(self._static_inputs(self.buckets[0]), self.buckets[1:])
        self.fallback_reason = ""
        self._dynamic: ExportedProgram | None = None

    def run(self) -> CompiledModel:
        self.progress("exporting", 0.0)
        self._dynamic = export_dynamic(self.flat.module, self._static_inputs(self.buckets[0]))
        programs = self._lower_all()
        store = PlanStore(self.options.cache_dir) if self.options.cache_dir else None
        key = self._key(programs) if store else {}  # reads every weight
        saved = self._usable(store.load(self.name, key)) if store else None
        chosen = {
            bucket: self._choose(bucket, programs[bucket], saved) for bucket in self._announced("measuring", 0.1, 0.7)
        }
        graphs: dict[int, CapturedGraph] = {}
        for bucket in self._announced("capturing and verifying", 0.7, 1.0):
            graphs[bucket], chosen[bucket] = self._finish(programs[bucket], chosen[bucket])
        buckets = tuple(
            self._bucket_plan(bucket, programs[bucket], chosen[bucket], saved) for bucket in reversed(self.buckets)
        )
        plan = Plan(self.name, self.device.kind, self.device.name, buckets, self.fallback_reason)
        if store and saved is None:
            store.save(key, plan)
        self.device.trim()
        return CompiledModel(self.flat, self.device, graphs, plan)

    def _announced(self, what: str, begin: float, end: float) -> Iterator[int]:
        for position, bucket in enumerate(self.buckets):
            self.progress(f"{what} batch size {bucket}", begin + (end - begin) * position / len(self.buckets))
            yield bucket

    def _static_inputs(self, bucket: int) -> tuple[Tensor, ...]:
        return static_inputs(self.flat.inputs, bucket, self.device.torch_device(), self.options.channels_last)

    def _lower_all(self) -> dict[int, Program]:
        """All buckets by their operators, or, where that fails for one, all as a whole."""
        try:
            return {bucket: self._lower(bucket) for bucket in self.buckets}
        except LoweringError as error:
            self.fallback_reason = str(error)
            log.warning("%s runs as one sequential graph: %s", self.name, error)
            weights = [*self.flat.module.parameters(), *self.flat.module.buffers()]
            return {bucket: lower_whole(self.flat, weights, self._static_inputs(bucket)) for bucket in self.buckets}

    def _usable(self, saved: Plan | None) -> Plan | None:
        """A saved plan whose policies exist, for the batch sizes asked for; anything else is ignored with a warning."""
        try:
            for bucket in saved.buckets if saved else ():
                check_policy(bucket.policy)
        except ValueError as error:
            log.warning("ignoring the saved plan of %s: %s", self.name, error)
            return None
        if saved and [bucket.batch_size for bucket in saved.buckets] != sorted(self.buckets):
            log.warning("ignoring the saved plan of %s: it is for other batch sizes", self.name)
            return None
        return saved

    def _lower(self, bucket: int) -> Program:
        inputs = self._static_inputs(bucket)
        dynamic = self._dynamic if bucket > 1 else None
        return lower(dynamic or export_static(self.flat.module, inputs), inputs)

    def _choose(self, bucket: int, program: Program, saved: Plan | None) -> Choice:
        """Of all candidates; with a saved plan, of its choice and sequential, which are timed again.

        Raises CaptureError where the program does not even run.
        """
        try:
            profile = self.device.profile(program)
        except EngineError:
            raise
        except Exception as error:
            raise CaptureError(f"the model's operators fail: {first_line(error)}") from error
        kept = saved.bucket(bucket) if saved else None
        policy = kept.policy if kept else self.options.policy
        sequential, *others = contenders(program, profile, policy, self.device.max_streams, self.options.priorities)
        # The schedule is made anew from today's profile: compacted or not may have become the same.
        same = [other for other in others if kept is None or other.compact == kept.compact]
        entrants = [sequential, *(same or others)]
        return select(program, profile, self.device, entrants)

    def _finish(self, program: Program, choice: Choice) -> tuple[CapturedGraph, Choice]:
        """The graph that will serve: verified, and measured once more; sequential where the chosen one fails either."""
        if choice.winner == 0:
            return self._verified(capture(program, choice.schedule, self.device)), choice
        try:
            graph = self._verified(capture(program, choice.schedule, self.device))
        except (CaptureError, VerificationError) as error:
            log.warning("%s: %s failed, sequential runs instead: %s", self.name, choice.chosen.policy, error)
            reason = "wrong numbers" if isinstance(error, VerificationError) else "cannot be captured"
            choice = choice.falling_back(reason)
            return self._verified(capture(program, choice.schedule, self.device)), choice
        sequential = capture(program, choice.entrants[0].schedule, self.device)
        before, now = measure([sequential, graph], self.device)
        if now.median < before.median:
            sequential.close()
            return graph, choice.confirmed(before.median, now.median)
        log.warning("%s: measured again, %s is slower than sequential, which runs", self.name, choice.chosen.policy)
        graph.close()
        return self._verified(sequential), choice.falling_back("slower than sequential when measured again")

    def _verified(self, graph: CapturedGraph) -> CapturedGraph:
        try:
            error = self.verifier.check(graph)
        except BaseException:
            graph.close()
            raise
        log.debug("%s: error %.1e against float64", self.name, error)
        return graph

    def _bucket_plan(self, bucket: int, program: Program, choice: Choice, saved: Plan | None) -> BucketPlan:
        chosen, graph = choice.chosen, program.graph
        measured = {(c.policy, c.compact) for c in choice.candidates}
        earlier = saved.bucket(bucket).candidates if saved else ()
        return BucketPlan(
            batch_size=bucket,
            policy=chosen.policy,
            compact=chosen.compact,
            lowering=program.lowering,
            operators=len(graph),
            width=graph.width,
            depth=graph.depth,
            longest_path_us=graph.longest_path(choice.profile.durations),
            streams=chosen.streams,
            synchronisations=chosen.synchronisations,
            measured_us=chosen.measured_us,
            sequential_us=choice.sequential.measured_us,
            peak_bytes=chosen.peak_bytes,
            candidates=(*choice.candidates, *(c for c in earlier if (c.policy, c.compact) not in measured)),
            reused=saved is not None,
        )

    def _key(self, programs: Mapping[int, Program]) -> dict[str, Any]:
        """Everything a measurement depends on."""
        return {
            "format": PLAN_FORMAT,
            "engine": VERSION,
            "device": self.device.fingerprint(),
            "inputs": [asdict(spec) for spec in self.flat.inputs],
            "graphs": {
                str(bucket): sha256(program.graph.dumps().encode()).hexdigest() for bucket, program in programs.items()
            },
            "weights": _digest([*self.flat.module.parameters(), *self.flat.module.buffers()]),
            "options": {
                "policy": self.options.policy,
                "channels_last": self.options.channels_last,
                "priorities": self.options.priorities,
                "tolerance": self.options.tolerance,
            },
        }


def _digest(tensors: Sequence[Tensor]) -> str:
    """Of the tensors' bytes, shapes, strides and dtypes."""
    digest = sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}{tensor.stride()}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
