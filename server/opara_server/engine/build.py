"""Module → compiled model: export, lower, profile, select, capture, verify; one graph per bucket, one plan."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from opara_server.engine.capture import capture
from opara_server.engine.device import CapturedGraph, Device, open_device
from opara_server.engine.errors import CaptureError, EngineError, VerificationError, first_line
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.lowerings import Lowerings
from opara_server.engine.options import BuildOptions
from opara_server.engine.plan import SEQUENTIAL, BucketPlan, Plan, PlanStore
from opara_server.engine.policies import check_policy
from opara_server.engine.program import Program
from opara_server.engine.select import Choice, Contender, contenders, measure, select, shortlist
from opara_server.engine.spec import TensorSpec
from opara_server.engine.verify import Verifier
from opara_server.version import VERSION

log = logging.getLogger(__name__)

PLAN_FORMAT = 2  # of the saved plan and of what the engine does with it: raise it when a measurement no longer holds

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
        programs = self.lowerings.simplest(self.buckets)
        store = PlanStore(self.options.cache_dir) if self.options.cache_dir else None
        key = self._key(programs) if store else {}  # reads every weight
        saved = self._usable(store.load(self.name, key)) if store else None
        budget_s = self.options.tuning_budget_s / len(self.buckets)
        chosen = {
            bucket: self._choose(bucket, programs[bucket], saved, budget_s)
            for bucket in self._announced("measuring", 0.1, 0.7)
        }
        graphs: dict[int, CapturedGraph] = {}
        steady: dict[int, int] = {}
        for bucket in self._announced("capturing and verifying", 0.7, 1.0):
            held = self.device.held_bytes()
            graphs[bucket], chosen[bucket] = self._finish(chosen[bucket])
            steady[bucket] = self.device.held_bytes() - held
        buckets = tuple(
            self._bucket_plan(bucket, chosen[bucket], steady[bucket], saved) for bucket in reversed(self.buckets)
        )
        plan = Plan(self.name, self.device.kind, self.device.name, buckets, self.lowerings.fallback_reason)
        if store and saved is None:
            store.save(key, plan)
        self.device.trim()
        return CompiledModel(self.flat, self.device, graphs, plan)

    def _announced(self, what: str, begin: float, end: float) -> Iterator[int]:
        for position, bucket in enumerate(self.buckets):
            self.progress(f"{what} batch size {bucket}", begin + (end - begin) * position / len(self.buckets))
            yield bucket

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

    def _choose(self, bucket: int, program: Program, saved: Plan | None, budget_s: float) -> Choice:
        """Of all candidates; with a saved plan, of its choice and the simplest, which are timed again.

        Raises CaptureError where the program does not even run.
        """
        begin = time.monotonic()
        kept = saved.bucket(bucket) if saved else None
        policy = kept.policy if kept else self.options.policy
        aside = kept is not None and kept.lowering != program.lowering
        entrants = self._entrants(program, SEQUENTIAL if aside else policy)
        wanted = self.lowerings.wanted() if kept is None else {kept.lowering} - {program.lowering}
        for fused in self.lowerings.fused(bucket, wanted):
            entrants += self._entrants(fused, policy)
            if time.monotonic() - begin > budget_s / 2:
                break
        if kept:
            entrants = [entrants[0], *_like(entrants[1:], kept)]
        return select(entrants, self.device, max(0.0, budget_s - (time.monotonic() - begin)))

    def _entrants(self, program: Program, policy: str) -> list[Contender]:
        try:
            profile = self.device.profile(program)
        except EngineError:
            raise
        except Exception as error:
            raise CaptureError(f"the model's operators fail: {first_line(error)}") from error
        found = contenders(program, profile, policy, self.device.max_streams, self.options.priorities)
        return shortlist(found, self.device.latency)

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

    def _capture(self, contender: Contender) -> CapturedGraph:
        return capture(contender.program, contender.schedule, self.device)

    def _verified(self, graph: CapturedGraph) -> CapturedGraph:
        try:
            error = self.verifier.check(graph)
        except BaseException:
            graph.close()
            raise
        log.debug("%s: error %.1e against float64", self.name, error)
        return graph

    def _bucket_plan(self, bucket: int, choice: Choice, steady_bytes: int, saved: Plan | None) -> BucketPlan:
        chosen, graph = choice.chosen, choice.best.program.graph
        measured = {c.key for c in choice.candidates}
        earlier = saved.bucket(bucket).candidates if saved else ()
        return BucketPlan(
            batch_size=bucket,
            policy=chosen.policy,
            compact=chosen.compact,
            lowering=chosen.lowering,
            operators=len(graph),
            width=graph.width,
            depth=graph.depth,
            longest_path_us=graph.longest_path(choice.best.profile.durations),
            streams=chosen.streams,
            synchronisations=chosen.synchronisations,
            measured_us=chosen.measured_us,
            sequential_us=choice.sequential.measured_us,
            peak_bytes=chosen.peak_bytes,
            candidates=(*choice.candidates, *(c for c in earlier if c.key not in measured)),
            reused=saved is not None,
            steady_bytes=steady_bytes,
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
                "lowering": self.options.lowering,
                "tuning_budget_s": self.options.tuning_budget_s,
                "channels_last": self.options.channels_last,
                "priorities": self.options.priorities,
                "tolerance": self.options.tolerance,
            },
        }


def _like(entrants: Sequence[Contender], kept: BucketPlan) -> Sequence[Contender]:
    """Those of the saved choice's policy. Its schedule is made anew from today's profile: compacted or not may have
    become the same."""
    of_policy = [e for e in entrants if (e.program.lowering, e.schedule.policy) == (kept.lowering, kept.policy)]
    return [e for e in of_policy if e.compact == kept.compact] or of_policy


def _digest(tensors: Sequence[Tensor]) -> str:
    """Of the tensors' bytes, shapes, strides and dtypes."""
    digest = sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}{tensor.stride()}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
