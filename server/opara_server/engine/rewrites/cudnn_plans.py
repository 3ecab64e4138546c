"""cuDNN's plans for a convolution with what follows it, through NVIDIA's cudnn-frontend.

A convolution is told to cuDNN in one of two ways. In the first its own fused kernels are found: dozens, ready at once,
whose results lie densely; into the channels of a wider tensor they write by way of scratch memory and a copy. In the
second it compiles kernels for just this layer, in a third of a second each, which write anywhere.
"""

from __future__ import annotations

import logging
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from threading import RLock
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from opara_server.engine.rewrites.convolution_layer import Form, Layer

log = logging.getLogger(__name__)

OPERANDS = {"x": 1, "weight": 2, "bias": 3, "residual": 4, "out": 5}  # as cuDNN knows them
DTYPES = {torch.float16: "HALF", torch.bfloat16: "BFLOAT16", torch.float32: "FLOAT"}  # as cuDNN calls them
COMPILED = "compiled"  # what names begin with of plans that are written down whole
SCRATCH = 1 << 26  # bytes of a plan; with those that take more, choosing for NASNet in float32 filled a GPU of 140 GiB

_CUDNN = RLock()  # of the handles, which belong to one stream at a time, and of the plans


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


def refusals() -> tuple[type[Exception], ...]:
    """How cuDNN says that it cannot."""
    cudnn: Any = frontend()
    return (cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError)


@contextmanager
def handle(device: torch.device) -> Iterator[None]:
    """The device's handle, for this thread alone, on its current stream. Raises RuntimeError without cudnn-frontend."""
    cudnn: Any = frontend()
    if cudnn is None:
        raise RuntimeError("the plan is for cudnn-frontend, which does not work here")
    with _CUDNN, torch.cuda.device(device):
        cudnn.set_stream(handle=_created(device), stream=torch.cuda.current_stream(device).cuda_stream)
        yield


@cache
def _created(device: torch.device) -> int:
    cudnn: Any = frontend()
    with torch.cuda.device(device):
        created: int = cudnn.create_handle()
    return created


@dataclass(frozen=True, eq=False)
class Plan:
    """Built, to be used within ``handle``. ``scratch``: bytes that a launch needs besides its operands. ``index``: of
    the plan in ``graph``; None for the only one of a graph that was written down."""

    name: str
    scratch: int
    graph: Any
    index: int | None

    def scratch_on(self, device: torch.device) -> Tensor:
        """Memory for a launch, or for several in a row."""
        return torch.empty(self.scratch, dtype=torch.uint8, device=device)

    def launch(self, tensors: Mapping[str, Tensor], scratch: Tensor | None = None) -> None:
        """On the handle's stream. ``tensors``: by the names of OPERANDS. ``scratch``: from ``scratch_on``; None: memory
        of this launch's own."""
        device = tensors["x"].device
        scratch = self.scratch_on(device) if scratch is None else scratch
        pointers = {OPERANDS[name]: tensor.data_ptr() for name, tensor in tensors.items()}
        if self.index is None:
            self.graph.execute(pointers, scratch.data_ptr(), handle=_created(device))
        else:
            self.graph.execute_plan_at_index(pointers, scratch.data_ptr(), self.index, handle=_created(device))

    def whole(self, layer: Layer) -> str:
        """The plan itself with its machine code, as a name. Raises one of ``refusals``."""
        self.graph.build_plan_at_index(self.index)  # the one that is written down is the one that was built last
        code = b64encode(zlib.compress(bytes(self.graph.serialize()))).decode()
        return f"{COMPILED} {layer.digest} {code}"


@cache
def plan(layer: Layer, name: str) -> Plan:
    """By its name: among those that are listed, or as a whole. Raises RuntimeError where there is none such.

    Loaded once per process, and never unloaded: graphs that were captured with its kernels may be anywhere. So there
    are as many as the models that were captured here have different layers; a search's are its child process's.
    """
    if name.startswith(COMPILED):
        return _loaded(layer, name)
    graph = _listed(layer, compiled=False)
    for index in range(graph.get_execution_plan_count()):
        if graph.get_plan_name_at_index(index) == name:
            return _built(graph, index)
    raise RuntimeError(f"cuDNN has no plan {name} for {layer}")


def _loaded(layer: Layer, name: str) -> Plan:
    cudnn: Any = frontend()
    _, digest, code = name.split()
    if digest != layer.digest:
        raise RuntimeError(f"a plan for another layer than {layer}")
    graph = cudnn.pygraph(handle=_created(layer.device))
    graph.deserialize(_created(layer.device), list(zlib.decompress(b64decode(code))))
    return Plan(name, graph.get_workspace_size(), graph, None)


def offered(layer: Layer, *, compiled: bool, tf32: bool, most: int | None = None) -> Iterator[Plan]:
    """The ``most`` plans that cuDNN thinks best of those that it can build, that give the same result on every run, and
    that need no more than SCRATCH.

    ``tf32``: float32 may be rounded to that.
    """
    cudnn: Any = frontend()
    notes = cudnn.numerical_note
    exact = [notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS] if layer.dtype == torch.float32 and not tf32 else []
    try:
        graph = _listed(layer, compiled=compiled)
        graph.deselect_numeric_notes([notes.NONDETERMINISTIC, *exact])
    except refusals() as error:
        log.debug("%s: %s", layer, error)
        return
    yield from islice((plan for plan in _buildable(graph) if plan.scratch <= SCRATCH), most)


def _buildable(graph: Any) -> Iterator[Plan]:
    seen = set()
    for index in range(graph.get_execution_plan_count()):
        name = graph.get_plan_name_at_index(index)
        if name in seen:
            continue
        seen.add(name)
        try:
            yield _built(graph, index)
        except refusals() as error:
            log.debug("%s: %s", name, error)


def _built(graph: Any, index: int) -> Plan:
    graph.build_plan_at_index(index)
    return Plan(graph.get_plan_name_at_index(index), graph.get_workspace_size_plan_at_index(index), graph, index)


def _listed(layer: Layer, *, compiled: bool) -> Any:
    """The layer in cuDNN's terms, with its plans listed. Raises one of ``refusals``."""
    cudnn: Any = frontend()
    kind, wide = getattr(cudnn.data_type, DTYPES[layer.dtype]), cudnn.data_type.FLOAT
    graph = cudnn.pygraph(
        io_data_type=kind, intermediate_data_type=wide, compute_data_type=wide, handle=_created(layer.device)
    )

    def operand(name: str, form: Form) -> Any:
        dim, stride = list(form.shape), list(form.stride)
        return graph.tensor(name=name, dim=dim, stride=stride, data_type=kind, uid=OPERANDS[name])

    stride, padding, dilation = map(list, layer.geometry)
    result = graph.conv_fprop(
        image=operand("x", layer.x),
        weight=operand("weight", layer.weight),
        pre_padding=padding,
        post_padding=padding,
        stride=stride,
        dilation=dilation,
    )
    channels = layer.out.shape[1]
    terms = {"residual": layer.residual}  # before the bias: the order of cuDNN's own fused kernels
    if layer.biased:
        terms["bias"] = Form((1, channels, 1, 1), (channels, 1, channels, channels))
    for name in reversed(terms) if compiled else terms:
        if (form := terms[name]) is not None:
            result = graph.add(result, operand(name, form))
    if layer.relu:
        result = graph.relu(result)
    if compiled and layer.residual is None:  # what the fused kernels do not have; before the residual is the bias
        result = graph.identity(result)
    result.set_output(True).set_uid(OPERANDS["out"]).set_data_type(kind)
    result.set_dim(list(layer.out.shape)).set_stride(list(layer.out.stride))
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A])
    return graph
