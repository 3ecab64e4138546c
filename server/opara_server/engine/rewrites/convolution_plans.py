"""Which of cuDNN's plans computes a convolution fastest, alone or in company: measured, once per layer and process.

In company are chains of launches of the same layer: where kernels fill the GPU together, one that takes little of it
is worth more than one that is done first.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from opara_server.engine.rewrites.convolution_layer import Form, Layer
from opara_server.engine.rewrites.cudnn_plans import DTYPES, Plan, frontend, handle, offered, plan, refusals

log = logging.getLogger(__name__)

COMPILED = 3  # how many kernels are compiled for a layer, in a third of a second each
LONG_US = 15.0  # none are for one that takes as long with kernels that are ready
WORTH_SCRATCH = 1.05  # how much faster a plan must be for a launch to need memory of its own
LAUNCHES, REPLAYS = 10, 5  # of a measurement: launches in one graph, and how often it is timed


@dataclass(frozen=True, slots=True)
class Choice:
    """``plan``: its name, for ``run``; ``us``: how long a launch takes in a chain of them that is alone, µs."""

    plan: str
    us: float


@dataclass(frozen=True, slots=True)
class _Candidate:
    """``made``: compiled for the layer. ``us``: of a launch in a chain of them that is alone."""

    plan: Plan
    made: bool
    us: float


@cache
def fastest(layer: Layer, *, compiled: bool, tf32: bool, together: int = 1) -> Choice | None:
    """The plan that takes the least time on the GPU as it is now, with as many chains of launches ``together``. None
    where there is none or no cudnn-frontend; on a CPU, which needs no plan, one without a name. Must not run in a
    capture.

    ``compiled``: kernels are also compiled for this layer, unless it is a long one. Of a ``sparse`` layer they are the
    only ones: others write its result by way of scratch memory. ``tf32``: float32 may be rounded to that.
    """
    if layer.device.type != "cuda":
        return Choice("", 0.0)
    if frontend() is None or layer.dtype not in DTYPES:
        return None
    with handle(layer.device):
        candidates = _candidates(layer, compiled, tf32)
        for candidate in _by_worth(candidates, layer, together):
            try:
                name = candidate.plan.whole(layer) if candidate.made else candidate.plan.name
                return Choice(name, candidate.us)
            except refusals() as error:
                log.warning("cuDNN does not write its plan %s down: %s", candidate.plan.name, error)
    log.info("cuDNN has no plan for %s", layer)
    return None


@cache
def _candidates(layer: Layer, compiled: bool, tf32: bool) -> tuple[_Candidate, ...]:
    """Those that run. Within ``handle``."""
    tensors = [_example(layer)]
    ready = () if layer.sparse else offered(layer, compiled=False, tf32=tf32)
    found = list(_timed(ready, layer, tensors, made=False))
    if compiled and min((candidate.us for candidate in found), default=0.0) < LONG_US:
        found += _timed(offered(layer, compiled=True, tf32=tf32, most=COMPILED), layer, tensors, made=True)
    return tuple(found)


def _timed(
    plans: Iterable[Plan], layer: Layer, tensors: Sequence[Mapping[str, Tensor]], *, made: bool
) -> Iterator[_Candidate]:
    for one in list(plans):  # all are built first: building would disturb the timing
        us = None if one.scratch and layer.sparse else _time(one, tensors)
        if us is not None:
            yield _Candidate(one, made, us)


def _by_worth(candidates: Iterable[_Candidate], layer: Layer, together: int) -> Iterator[_Candidate]:
    """The best first."""
    tensors = [_example(layer) for _ in range(together)] if together > 1 else []
    timed = [(_time(one.plan, tensors) if tensors else one.us, one) for one in candidates]
    worths = [(us * (WORTH_SCRATCH if one.plan.scratch else 1.0), one) for us, one in timed if us is not None]
    return (one for _, one in sorted(worths, key=itemgetter(0)))


def run(layer: Layer, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Launch the layer's plan of this ``name`` on the current stream. ``tensors``: by the names of OPERANDS, forms and
    devices as in ``layer``. Raises RuntimeError where cuDNN does not know it any more."""
    with handle(layer.device):
        plan(layer, name).launch(tensors)


def _example(layer: Layer) -> dict[str, Tensor]:
    """Tensors of the layer's forms, with numbers that do not overflow."""
    forms = {"x": layer.x, "weight": layer.weight, "residual": layer.residual, "out": layer.out}
    if layer.biased:
        forms["bias"] = Form((layer.out.shape[1],), (1,))
    kind: Any = {"dtype": layer.dtype, "device": layer.device}
    random = torch.Generator(layer.device).manual_seed(0)  # what others draw stays the same
    return {
        name: torch.empty_strided(form.shape, form.stride, **kind).uniform_(-0.1, 0.1, generator=random)
        for name, form in forms.items()
        if form is not None
    }


def _time(candidate: Plan, tensors: Sequence[Mapping[str, Tensor]]) -> float | None:
    """µs per launch, of as many chains of them side by side as there are ``tensors``; None where cuDNN refuses to run
    what it has built."""
    device = tensors[0]["x"].device
    graph, streams = torch.cuda.CUDAGraph(), [torch.cuda.Stream() for _ in tensors]
    first = streams[0]
    try:
        chains = [(own, candidate.scratch_on(device)) for own in tensors]  # not the graph's: nobody would reuse it
        first.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(first):
            with handle(device):
                candidate.launch(*chains[0])  # what it loads, it loads now
            first.synchronize()
            with _captured(graph):
                for stream in streams[1:]:
                    stream.wait_stream(first)
                for stream, chain in zip(reversed(streams), chains, strict=True):  # the first last: others wait for it
                    with torch.cuda.stream(stream), handle(device):
                        for _ in range(LAUNCHES):
                            candidate.launch(*chain)
                for stream in streams[1:]:
                    first.wait_stream(stream)
            return min(_replayed(graph.replay) for _ in range(1 + REPLAYS)) / (LAUNCHES * len(streams))
    except refusals() as error:
        log.debug("%s: %s", candidate.name, error)
        return None


@contextmanager
def _captured(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """Meanwhile no garbage is collected: that could destroy another graph, which CUDA forbids there."""
    collects = gc.isenabled()
    gc.disable()
    try:
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            yield
        finally:
            graph.capture_end()
    finally:
        if collects:
            gc.enable()


def _replayed(replay: Callable[[], None]) -> float:
    """µs."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3
