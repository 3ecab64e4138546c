"""Which of cuDNN's kernels computes a convolution fastest, and its launch: through NVIDIA's cudnn-frontend.

cuDNN has dozens of ways ("plans") to compute a convolution with what follows it. Its heuristics list them, and all that
they list are measured here, once per layer and process. A plan's name says its engine and its settings: by it the same
kernel is found again without measuring, in another process, too.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from threading import RLock
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

LAUNCHES, REPLAYS = 10, 5  # of a measurement: launches in one graph, and how often it is timed
OPERANDS = {"x": 1, "weight": 2, "bias": 3, "residual": 4, "out": 5}  # as cuDNN knows them

DTYPES = {torch.float16: "HALF", torch.bfloat16: "BFLOAT16", torch.float32: "FLOAT"}  # as cuDNN calls them

_CUDNN = RLock()  # of the handles, which belong to one stream at a time, and of the plans


@dataclass(frozen=True, slots=True)
class Form:
    """Of a tensor [N, C, H, W]."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution with what follows it, but for its numbers. ``geometry``: stride, padding, dilation."""

    device: torch.device
    dtype: torch.dtype
    x: Form
    weight: Form
    residual: Form | None
    out: Form
    biased: bool
    geometry: tuple[tuple[int, ...], ...]
    relu: bool

    @property
    def sparse(self) -> bool:
        """The result is some of the channels of a wider tensor: there is memory between its pixels."""
        return self.out.stride[3] > self.out.shape[1]


@dataclass(frozen=True, slots=True)
class Choice:
    """``plan``: its name; ``us``: how long a launch takes in a chain of them, µs."""

    plan: str
    us: float


def form(tensor: Tensor) -> Form:
    """Dimensions of size 1 get the strides that they would have in channels_last: PyTorch gives them any."""
    shape, stride = tuple(tensor.shape), list(tensor.stride())
    step = 1
    for dimension in (1, 3, 2, 0):
        if shape[dimension] == 1:
            stride[dimension] = step
        step = stride[dimension] * shape[dimension]
    return Form(shape, tuple(stride))


@cache
def frontend() -> ModuleType | None:
    """NVIDIA's package; None where it is not installed or finds no cuDNN, which is said once."""
    try:
        import cudnn  # noqa: PLC0415 - only where there is a GPU

        cudnn.backend_version()
    except (ImportError, AttributeError, OSError, AssertionError, RuntimeError) as error:
        log.warning("convolutions are PyTorch's own: cudnn-frontend does not work: %s", error)
        return None
    found: ModuleType = cudnn
    return found


@cache
def fastest(layer: Layer, *, tf32: bool) -> Choice | None:
    """The plan that takes the least time on the GPU as it is now: of those that need no scratch memory, if there are
    any, and of a ``sparse`` layer's of those alone, since with it they compute elsewhere and copy. None where there is
    none or no cudnn-frontend; on a CPU, which needs no plan, one without a name. Must not run inside a capture.

    ``tf32``: float32 may be rounded to that."""
    if layer.device.type != "cuda":
        return Choice("", 0.0)
    if frontend() is None or layer.dtype not in DTYPES:
        return None
    with _handle(layer.device):
        tensors = _example(layer)
        plans = list(_offered(layer, tf32))
        frugal = [plan for plan in plans if not plan.scratch]
        times = {plan.name: _time(plan, tensors) for plan in (frugal if frugal or layer.sparse else plans)}
    found = [Choice(name, us) for name, us in times.items() if us is not None]
    log.info("%d of %d plans run for %s", len(found), len(plans), layer)
    return min(found, key=lambda choice: choice.us, default=None)


def run(layer: Layer, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Launch the layer's plan of this ``name`` on the current stream. ``tensors``: by the names of OPERANDS, forms and
    devices as in ``layer``. Raises RuntimeError where cuDNN does not know it any more."""
    with _handle(layer.device):
        _plan(layer, name).launch(tensors)


class Plan:
    """One of cuDNN's, built. ``scratch``: bytes that a launch needs besides its operands."""

    def __init__(self, graph: Any, index: int) -> None:
        """Raises one of ``_refusals``."""
        graph.build_plan_at_index(index)
        self.name: str = graph.get_plan_name_at_index(index)
        self.scratch: int = graph.get_workspace_size_plan_at_index(index)
        self._graph, self._index = graph, index

    def launch(self, tensors: Mapping[str, Tensor]) -> None:
        """Within ``_handle``."""
        device = tensors["x"].device
        scratch = torch.empty(self.scratch, dtype=torch.uint8, device=device)
        pointers = {OPERANDS[name]: tensor.data_ptr() for name, tensor in tensors.items()}
        self._graph.execute_plan_at_index(pointers, scratch.data_ptr(), self._index, handle=_created(device))


@cache
def _plan(layer: Layer, name: str) -> Plan:
    """Found among the layer's by its name."""
    graph = _graph(layer)
    for index in range(graph.get_execution_plan_count()):
        if graph.get_plan_name_at_index(index) == name:
            return Plan(graph, index)
    raise RuntimeError(f"cuDNN has no plan {name} for {layer}")


def _offered(layer: Layer, tf32: bool) -> Iterator[Plan]:
    """What the heuristics list, as far as it can be built and gives the same result on every run."""
    cudnn: Any = frontend()
    refusals, notes = _refusals(), cudnn.numerical_note
    rounding = layer.dtype == torch.float32 and not tf32
    try:
        graph = _graph(layer)
        graph.deselect_numeric_notes(
            [notes.NONDETERMINISTIC, *([notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS] if rounding else [])]
        )
    except refusals as error:
        log.debug("%s: %s", layer, error)
        return
    names = [graph.get_plan_name_at_index(index) for index in range(graph.get_execution_plan_count())]
    for name, index in {name: index for index, name in reversed(list(enumerate(names)))}.items():
        try:
            yield Plan(graph, index)
        except refusals as error:
            log.debug("%s of %s: %s", name, layer, error)


def _graph(layer: Layer) -> Any:
    """The layer in cuDNN's terms, with its plans listed."""
    cudnn: Any = frontend()
    kind, wide = getattr(cudnn.data_type, DTYPES[layer.dtype]), cudnn.data_type.FLOAT
    graph = cudnn.pygraph(
        io_data_type=kind, intermediate_data_type=wide, compute_data_type=wide, handle=_created(layer.device)
    )

    def operand(name: str, form: Form) -> Any:
        return graph.tensor(
            name=name, dim=list(form.shape), stride=list(form.stride), data_type=kind, uid=OPERANDS[name]
        )

    stride, padding, dilation = map(list, layer.geometry)
    result = graph.conv_fprop(
        image=operand("x", layer.x),
        weight=operand("weight", layer.weight),
        pre_padding=padding,
        post_padding=padding,
        stride=stride,
        dilation=dilation,
    )
    if layer.residual is not None:  # before the bias: this is the order that cuDNN's own fused kernels have
        result = graph.add(result, operand("residual", layer.residual))
    if layer.biased:
        channels = layer.out.shape[1]
        result = graph.add(result, operand("bias", Form((1, channels, 1, 1), (channels, 1, channels, channels))))
    if layer.relu:
        result = graph.relu(result)
    result.set_output(True).set_uid(OPERANDS["out"]).set_data_type(kind)
    result.set_dim(list(layer.out.shape)).set_stride(list(layer.out.stride))
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A])
    return graph


def _refusals() -> tuple[type[Exception], ...]:
    """How cuDNN says that it cannot."""
    cudnn: Any = frontend()
    return (cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError)


@cache
def _created(device: torch.device) -> int:
    cudnn: Any = frontend()
    with torch.cuda.device(device):
        handle: int = cudnn.create_handle()
    return handle


@contextmanager
def _handle(device: torch.device) -> Iterator[None]:
    """The device's handle, for this thread alone, on its current stream."""
    cudnn: Any = frontend()
    if cudnn is None:
        raise RuntimeError("the plan is for cudnn-frontend, which does not work here")
    with _CUDNN, torch.cuda.device(device):
        cudnn.set_stream(handle=_created(device), stream=torch.cuda.current_stream(device).cuda_stream)
        yield


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


def _time(plan: Plan, tensors: Mapping[str, Tensor]) -> float | None:
    """µs per launch; None where cuDNN refuses to run what it has built."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream), _handle(tensors["x"].device):
            plan.launch(tensors)  # what it loads, it loads now
            stream.synchronize()
            with _captured(graph):
                for _ in range(LAUNCHES):
                    plan.launch(tensors)
            return min(_replayed(graph.replay) for _ in range(1 + REPLAYS)) / LAUNCHES
    except _refusals() as error:
        log.debug("%s: %s", plan.name, error)
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
