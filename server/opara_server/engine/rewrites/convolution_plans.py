"""Which of cuDNN's plans computes a convolution fastest: measured, once per layer and process."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
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
    """``plan``: its name, for ``run``; ``us``: how long a launch takes in a chain of them, µs."""

    plan: str
    us: float


@cache
def fastest(layer: Layer, *, compiled: bool, tf32: bool) -> Choice | None:
    """The plan that takes the least time on the GPU as it is now. None where there is none or no cudnn-frontend; on a
    CPU, which needs no plan, one without a name. Must not run in a capture.

    ``compiled``: kernels are also compiled for this layer, unless it is a long one. Of a ``sparse`` layer they are the
    only ones: others write its result by way of scratch memory. ``tf32``: float32 may be rounded to that.
    """
    if layer.device.type != "cuda":
        return Choice("", 0.0)
    if frontend() is None or layer.dtype not in DTYPES:
        return None
    with handle(layer.device):
        tensors = _example(layer)
        ready = [] if layer.sparse else [*offered(layer, compiled=False, tf32=tf32)]
        timed = list(_timed(ready, layer, tensors))
        wanted = compiled and min((us for us, _ in timed), default=0.0) < LONG_US
        made = [*offered(layer, compiled=True, tf32=tf32, most=COMPILED)] if wanted else []
        timed += _timed(made, layer, tensors)
        for us, candidate in sorted(timed, key=_worth):
            try:
                return Choice(candidate.whole(layer) if candidate in made else candidate.name, us)
            except refusals() as error:
                log.warning("cuDNN does not write its plan %s down: %s", candidate.name, error)
    log.info("cuDNN has no plan for %s", layer)
    return None


def _timed(plans: Sequence[Plan], layer: Layer, tensors: Mapping[str, Tensor]) -> Iterator[tuple[float, Plan]]:
    """Those that run, and how long a launch takes, µs."""
    for candidate in plans:
        us = None if candidate.scratch and layer.sparse else _time(candidate, tensors)
        if us is not None:
            yield us, candidate


def _worth(timed: tuple[float, Plan]) -> float:
    us, candidate = timed
    return us * (WORTH_SCRATCH if candidate.scratch else 1.0)


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


def _time(candidate: Plan, tensors: Mapping[str, Tensor]) -> float | None:
    """µs per launch; None where cuDNN refuses to run what it has built."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream), handle(tensors["x"].device):
            candidate.launch(tensors)  # what it loads, it loads now
            stream.synchronize()
            with _captured(graph):
                for _ in range(LAUNCHES):
                    candidate.launch(tensors)
            return min(_replayed(graph.replay) for _ in range(1 + REPLAYS)) / LAUNCHES
    except refusals() as error:
        log.debug("%s: %s", candidate.name, error)
        return None


@contextmanager
def _captured(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """Meanwhile no garbage is collected: that could destroy another graph, which CUDA forbids there."""
    collects = gc.isenabled()
    gc.disable()
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        yield
    finally:
        graph.capture_end()
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
