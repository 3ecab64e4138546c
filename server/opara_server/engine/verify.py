"""Does a captured graph compute what the module computes, every time?

Against eager: on fresh random inputs the error norm |out - ref| / |ref| against a float64 run of the module must not
exceed the larger of the dtype's bound and three times eager PyTorch's own error. Integer and bool outputs must be
eager's, but for what rounding tips over (tipping.py), which takes more inputs to tell. Against itself: 100 replays, on
two inputs in turns and with the outputs and the memory of explicit buffers poisoned before each, must repeat the first
answer to the same input. An operator that starts too early reads poison, or what the replay before left, of the other
input.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from math import isfinite

import torch
from torch import Tensor, nn

from opara_server.engine.device import CapturedGraph, Device
from opara_server.engine.errors import ModelError, VerificationError, first_line
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.steps import Steps
from opara_server.engine.tensors import fill_random, float32_precision, torch_dtype
from opara_server.engine.tipping import Tally

log = logging.getLogger(__name__)

FRESH_INPUTS = 3
PULLS = 7  # the largest of so many more random numbers is at least the median but for one in 2 ** 8
REPLAYS = 100
OVER_EAGER = 3.0
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
TF32_BOUND = 2e-3


class Verifier:
    """Knows one module's right answers. ``tolerance`` replaces the dtype's bound."""

    def __init__(self, flat: FlatModule, device: Device, tolerance: float | None) -> None:
        self._flat = flat
        self._device = device
        self._exact: nn.Module | None = None
        self._no_exact = False
        self.bound = default_bound(flat.module, device) if tolerance is None else tolerance

    def check(self, graph: CapturedGraph) -> Steps[float]:
        """Returns the largest error norm over the fresh inputs. Raises VerificationError.

        A step is one run of the module, or one replay. Between two of them other graphs of the device may replay, which
        overwrites outputs: what one graph keeps until the end may lie where another keeps what it computes on the way.
        """
        worst = 0.0
        tallies = [None if torch_dtype(spec.dtype).is_floating_point else Tally() for spec in self._flat.outputs]
        for _ in range(FRESH_INPUTS):
            error = yield from self._check_fresh(graph, tallies)
            worst = max(worst, error)
        yield from self._check_tipped(graph, tallies)
        yield from self._check_repeats(graph)
        return worst

    def check_rows(self, inputs: Sequence[Tensor], fewer: Iterable[int]) -> None:
        """Raise ModelError where a row's outputs depend on the other rows, or on how many they are: they are other
        requests', or padding.

        ``inputs``: of the largest batch size, overwritten with random values. ``fewer``: the other sizes that are run.
        """
        fill_random(inputs, self._flat.inputs)
        rows = [tensor.clone() for tensor in inputs]
        once = self._flat(*[tensor.clone() for tensor in rows])
        count = len(rows[0])
        kept_rows = sorted({0, count // 2, count - 1})
        for kept, pull in [*((kept, None) for kept in kept_rows), (0, torch.maximum), (count - 1, torch.minimum)]:
            self._fill(inputs, pull)
            for tensor, row in zip(inputs, rows, strict=True):
                tensor[kept] = row[kept]
            for spec, out, ref in zip(self._flat.outputs, self._flat(*inputs), once, strict=True):
                if not error_norm(out[kept], ref[kept]) <= (self.bound if out.is_floating_point() else 0.0):
                    raise ModelError(
                        f"output {spec.name!r} of a row changes with the other rows of its batch, or at random"
                    )
        exact = self._run_exact(rows)
        for size in fewer:
            fewer_rows = self._flat(*[tensor[:size].clone() for tensor in rows])
            for spec, out, own, ref in zip(self._flat.outputs, fewer_rows, once, exact, strict=True):
                # Other sizes may run on other kernels, which round differently: integers may tip over.
                error, allowed = self._error(out, own[:size], ref[:size])
                if out.is_floating_point() and not error <= allowed:
                    raise ModelError(f"output {spec.name!r} of a row changes with the number of rows, at {size}")

    def _fill(self, inputs: Sequence[Tensor], pull: Callable[[Tensor, Tensor], Tensor] | None) -> None:
        """With random values, or with what ``pull`` takes of several: so that all of a batch's numbers together are
        larger, or smaller, than most batches'."""
        fill_random(inputs, self._flat.inputs)
        if pull is None:
            return
        drawn = [torch.empty_like(tensor) for tensor in inputs]
        for _ in range(PULLS):
            fill_random(drawn, self._flat.inputs)
            for tensor, other in zip(inputs, drawn, strict=True):
                tensor.copy_(pull(tensor, other))

    def _check_fresh(self, graph: CapturedGraph, tallies: Sequence[Tally | None]) -> Steps[float]:
        inputs, outputs, eager = yield from self._asked(graph)
        exact = self._run_exact(inputs)
        yield
        errors = [0.0]
        for spec, tally, out, own, ref in zip(self._flat.outputs, tallies, outputs, eager, exact, strict=True):
            if tally:
                tally.add(out, own, ref)
                continue
            error, allowed = self._error(out, own, ref)
            if not error <= allowed:  # also when NaN
                raise VerificationError(
                    f"output {spec.name!r}: error {error:.2e} against float64, allowed {allowed:.2e}"
                )
            errors.append(error)
        return max(errors)

    def _check_tipped(self, graph: CapturedGraph, tallies: Sequence[Tally | None]) -> Steps[None]:
        """Integers alone, on further inputs where some were wrong; float64 is only run where they are not eager's."""
        self._judge(tallies)
        while any(tally.undecided for tally in tallies if tally):
            inputs, outputs, eager = yield from self._asked(graph)
            pairs = zip(tallies, outputs, eager, strict=True)
            same = all(torch.equal(out, own) for tally, out, own in pairs if tally)
            exact = eager if same else self._run_exact(inputs)
            yield
            for tally, out, own, ref in zip(tallies, outputs, eager, exact, strict=True):
                if tally:
                    tally.add(out, own, ref)
            self._judge(tallies)

    def _judge(self, tallies: Sequence[Tally | None]) -> None:
        for spec, tally in zip(self._flat.outputs, tallies, strict=True):
            if tally and tally.fault:
                raise VerificationError(f"output {spec.name!r}: {tally.fault}")

    def _asked(self, graph: CapturedGraph) -> Steps[tuple[list[Tensor], list[Tensor], tuple[Tensor, ...]]]:
        """Fresh inputs, what the graph makes of them, and eager PyTorch."""
        fill_random(graph.inputs, self._flat.inputs)
        inputs = [tensor.clone() for tensor in graph.inputs]
        poison((*graph.outputs, graph.arena))
        graph.replay()
        outputs = [out.clone() for out in graph.outputs]
        self._device.synchronize()
        yield
        eager = self._flat(*[tensor.clone() for tensor in inputs])
        yield
        return inputs, outputs, eager

    def _error(self, out: Tensor, own: Tensor, ref: Tensor) -> tuple[float, float]:
        """The error norm of ``out``, and the largest one allowed."""
        eager_error = error_norm(own, ref)
        if isfinite(eager_error):
            return error_norm(out, ref), max(self.bound, OVER_EAGER * eager_error)
        return error_norm(out, own), self.bound  # eager overflows where float64 does not, and that is right

    def _check_repeats(self, graph: CapturedGraph) -> Steps[None]:
        turns = []
        for _ in range(2):
            fill_random(graph.inputs, self._flat.inputs)
            inputs = [tensor.clone() for tensor in graph.inputs]
            self._replay(graph, inputs)
            turns.append((inputs, [out.clone() for out in graph.outputs]))
            yield
        worst = torch.zeros(len(graph.outputs), dtype=torch.float64, device=graph.outputs[0].device)
        for replay in range(REPLAYS):
            inputs, first = turns[replay % 2]
            self._replay(graph, inputs)
            now = [_difference(out, ref) for out, ref in zip(graph.outputs, first, strict=True)]
            worst = torch.maximum(worst, torch.stack(now))
            yield
        for spec, error in zip(self._flat.outputs, worst.tolist(), strict=True):
            if not error <= (self.bound if torch_dtype(spec.dtype).is_floating_point else 0.0):
                raise VerificationError(
                    f"output {spec.name!r} differs by {error:.2e} between replays of the same input"
                )

    def _replay(self, graph: CapturedGraph, inputs: Sequence[Tensor]) -> None:
        for static, value in zip(graph.inputs, inputs, strict=True):
            static.copy_(value)  # a module may write to its inputs
        poison((*graph.outputs, graph.arena))
        graph.replay()

    def _run_exact(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The module in float64; where that fails (an operator without float64), eager PyTorch as it is."""
        if not self._no_exact:
            try:
                return self._run_double(inputs)
            except Exception as error:  # noqa: BLE001 - a model may raise anything on doubles it does not expect
                log.warning("no float64 reference (%s): comparing with eager alone", first_line(error))
                self._exact, self._no_exact = None, True
        return self._flat(*[tensor.clone() for tensor in inputs])

    def _run_double(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Without cuDNN, which would take milliseconds per layer to plan what runs once."""
        self._exact = self._exact or copy.deepcopy(self._flat.module).double()
        doubles = [tensor.double() if tensor.is_floating_point() else tensor.clone() for tensor in inputs]
        enabled = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False
        try:
            return self._flat.run(self._exact, doubles)
        finally:
            torch.backends.cudnn.enabled = enabled


def default_bound(module: nn.Module, device: Device) -> float:
    """By the coarsest floating-point dtype of the module's parameters (float32 where it has none)."""
    dtypes = {tensor.dtype for tensor in _weights(module) if tensor.dtype in BOUNDS} or {torch.float32}
    bound = max(BOUNDS[dtype] for dtype in dtypes)
    tf32 = torch.float32 in dtypes and device.kind == "cuda" and "tf32" in float32_precision()
    return max(bound, TF32_BOUND) if tf32 else bound


def _weights(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def poison(tensors: Iterable[Tensor]) -> None:
    """Overwrite with values that no right answer has: NaN, the largest integer, the opposite bool. Bytes so overwritten
    are NaN as floating-point numbers of any width."""
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
        elif tensor.dtype == torch.bool:
            tensor.logical_not_()
        else:
            tensor.fill_(torch.iinfo(tensor.dtype).max)


def error_norm(out: Tensor, ref: Tensor) -> float:
    """|out - ref| / |ref| over the values that are finite in ``ref``; infinite when the others are not the same."""
    return float(_difference(out, ref))


def _difference(out: Tensor, ref: Tensor) -> Tensor:
    """The error norm as a float64 scalar on the tensors' device, so that nothing waits for it."""
    out, ref = out.double(), ref.double()
    finite = torch.isfinite(ref)
    odd = ~(finite | (out == ref) | (torch.isnan(out) & torch.isnan(ref)))
    norm = torch.linalg.vector_norm(torch.where(finite, ref, 0.0))
    error = torch.linalg.vector_norm(torch.where(finite, out - ref, 0.0))
    relative = torch.where(norm > 0, error / norm, error)
    return torch.where(odd.any() | torch.isnan(relative), torch.inf, relative)
