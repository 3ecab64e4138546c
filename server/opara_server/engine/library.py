"""The engine as a library: a module in, a callable of the same signature out."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opara_server.engine.build import compile_model
from opara_server.engine.compiled import CompiledModel
from opara_server.engine.options import AUTO, BuildOptions
from opara_server.engine.plan import Plan
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import dtype_name


class OptimizedModel:
    """Calls run on captured graphs. Outputs are the caller's own tensors, in the module's own structure.

    Calls from several threads take turns; on a GPU they must share one current stream.
    """

    def __init__(self, compiled: CompiledModel) -> None:
        self._compiled = compiled
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, compiled.close)  # streams and memory of a model that nobody closed
        self._finalizer.atexit = False

    @property
    def plan(self) -> Plan:
        """What was measured and what was chosen, per batch size."""
        return self._compiled.plan

    def __call__(self, *inputs: Tensor) -> Any:
        """``inputs``: tensors of any number of rows, [rows, ...]; more than the largest batch size run in parts.

        Raises ValueError on tensors that do not fit the example inputs: nothing is broadcast or converted, and an
        integer outside its range, which may index a table, would take a GPU process down.
        """
        rows = self._checked_rows(inputs)
        most = self._compiled.buckets[-1]
        with self._lock, self._compiled.device.bind():
            if not self._finalizer.alive:
                raise ValueError("the model is closed")
            parts = [self._run([tensor[at : at + most] for tensor in inputs]) for at in range(0, rows, most)]
        outputs = parts[0] if len(parts) == 1 else tuple(torch.cat(part) for part in zip(*parts, strict=True))
        return self._compiled.rebuild(outputs)

    def close(self) -> None:
        """Free the graphs and their memory. Calls raise ValueError from then on."""
        with self._lock:
            self._finalizer()

    def _run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        rows = len(inputs[0])
        bucket = next(b for b in self._compiled.buckets if b >= rows)
        graph = self._compiled.graph(bucket)
        for spec, static, given in zip(self._compiled.inputs, graph.inputs, inputs, strict=True):
            static[:rows].copy_(given)
            static[rows:].fill_(spec.padding)
        graph.replay()
        with torch.inference_mode(False):  # the caller may write to them, or train on them
            return tuple(output[:rows].clone() for output in graph.outputs)

    def _checked_rows(self, inputs: Sequence[Tensor]) -> int:
        specs = self._compiled.inputs
        if len(inputs) != len(specs):
            raise ValueError(f"{len(specs)} inputs expected, {len(inputs)} given")
        for spec, given in zip(specs, inputs, strict=True):
            _check_type(spec.name, given)
            shape = tuple(given.shape)
            if shape[:1] in {(), (0,)} or shape[1:] != spec.shape or dtype_name(given.dtype) != spec.dtype:
                expected = f"{spec.dtype} [rows, {', '.join(map(str, spec.shape))}]"
                raise ValueError(f"{spec.name}: {expected} expected, {given.dtype} {list(shape)} given")
            if len(given) != len(inputs[0]):
                raise ValueError(f"{spec.name} has {len(given)} rows, {specs[0].name} {len(inputs[0])}")
            if "int" in spec.dtype:
                _check_range(spec, given)
        return len(inputs[0])


def optimize(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    batch_sizes: Sequence[int] = (1,),
    *,
    device: str | None = None,
    policy: str = AUTO,
    lowering: str = AUTO,
    tuning_budget_s: float = 300.0,
    ranges: Sequence[tuple[float, float] | None] | None = None,
    channels_last: bool = False,
    priorities: bool = True,
    tolerance: float | None = None,
    cache_dir: Path | str | None = None,
) -> OptimizedModel:
    """Schedule the model's operators on streams, per batch size, and keep what measures fastest.

    ``example_inputs``: the forward's arguments, tensors [rows, ...]; they give element types and shapes. ``ranges``:
    per input (low, high), low <= value < high, of the random values for measuring and verifying; integers outside are
    refused. Default, also for each None: the example's own range for integers, standard normal for floats. ``device``:
    default where the model's weights are. The other options are BuildOptions'. The model must be in eval mode; its
    weights are used in place and must not change. Raises EngineError (engine.errors), ValueError.
    """
    examples = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
    limits = [None] * len(examples) if ranges is None else ranges
    if len(limits) != len(examples):
        raise ValueError(f"{len(limits)} ranges for {len(examples)} example inputs")
    specs = [
        _spec(f"input{n}", example, limit) for n, (example, limit) in enumerate(zip(examples, limits, strict=True))
    ]
    weight = next(model.parameters(), None)
    options = BuildOptions(
        batch_sizes=tuple(batch_sizes),
        policy=policy,
        lowering=lowering,
        tuning_budget_s=tuning_budget_s,
        channels_last=channels_last,
        priorities=priorities,
        tolerance=tolerance,
        cache_dir=None if cache_dir is None else Path(cache_dir),
    )
    where = device or (weight.device.type if weight is not None else AUTO)
    return OptimizedModel(compile_model(type(model).__name__, model, specs, where, options))


def _check_type(name: str, given: object) -> None:
    if not isinstance(given, Tensor):
        raise ValueError(f"{name}: a tensor expected, {type(given).__name__} given")


def _check_range(spec: TensorSpec, given: Tensor) -> None:
    if spec.low is None or spec.high is None or not given.numel():
        return
    least, greatest = (int(end) for end in given.aminmax())
    if not (spec.low <= least and greatest < spec.high):
        allowed = f"[{spec.low:.15g}, {spec.high:.15g}) expected, as ranges= or else the example inputs say"
        raise ValueError(f"{spec.name}: values in {allowed}; {least} to {greatest} given")


def _spec(name: str, example: Tensor, limits: tuple[float, float] | None) -> TensorSpec:
    _check_type(name, example)
    if example.dim() == 0:
        raise ValueError(f"{name}: an example input needs a batch dimension")
    integers = not example.is_floating_point() and example.dtype != torch.bool
    if limits is None and integers and example.numel():
        limits = int(example.min()), int(example.max()) + 1
    low, high = limits or (None, None)
    return TensorSpec(name, dtype_name(example.dtype), tuple(example.shape[1:]), low, high)
