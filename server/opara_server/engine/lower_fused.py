"""The `fused` lowering: Inductor's fused kernels as operators. The only file that knows PyTorch's internals.

Run on torch 2.11. Inductor's FX wrapper gives a graph of allocations, views, calls of library kernels and Triton
launches. Its own converter makes of a launch an operator that compiles the kernel again, without the configuration that
was tuned; here a node of the graph is the tuned kernel itself, and in the finished program its machine code. A Triton
kernel overwrites the arguments named ``out_ptr*``, changes those that Inductor lists as mutated, reads the others.
"""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.utils import _triton

from opara_server.engine.errors import LoweringError, first_line
from opara_server.engine.graph import Kind
from opara_server.engine.lowering import program_of
from opara_server.engine.program import Call, Environment, Program
from opara_server.engine.rewrites import TRITON_CALLS, Weights, apply, functional
from opara_server.engine.tensors import dtype_name
from opara_server.engine.trial_record import Given
from opara_server.engine.triton_call import as_launch, launch_of

OPTIONS = {
    "fx_wrapper": True,
    "freezing": True,  # folds BatchNorm, and weights into the layouts that kernels want
    "allow_buffer_reuse": False,  # every buffer is written once and then read: memory is planned here (arena.py)
    "inplace_buffers": False,
    "comprehensive_padding": False,  # some readers of a buffer take it to be padded that its writer did not pad
    "size_asserts": False,  # these two would be plain lines of Python, which the converter refuses
    "alignment_asserts": False,
    "use_static_triton_launcher": False,  # the other kind keeps what Triton says of a kernel
}
"""Of ``torch._inductor.aot_compile``."""


@dataclass(frozen=True)
class Variant:
    """``rewrites``: names of passes that go ahead of Inductor. ``options``: of Inductor, besides OPTIONS."""

    rewrites: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


BASIC = ("fold_constants", "idle_masks")
EPILOGUES = ("linear_epilogues", "conv_epilogues")
REWRITTEN = (
    "fold_constants",
    "idle_masks",
    "overflow_clamps",
    "attention",
    "deduplicate",
    "fold_batch_norm",
    "fold_padding",
    "merge_embeddings",
    "merge_linears",
    "pad_channels",
    "depthwise",
    "narrow_linears",
    *EPILOGUES,
    "explicit_linears",
    "explicit_convolutions",
    "explicit_kernels",
)
COMPANY = (*REWRITTEN[:-2], "convolutions_in_company", REWRITTEN[-1])
EARLY = {"triton.enable_pdl": True}
CATS = {"max_pointwise_cat_inputs": 32}
"""So many tensors are concatenated by the kernel that reads them together. A longer concatenation is filled part by
part, each as soon as it is there; where one tensor is a part of many, as in a dense block, one kernel writes it into
all of them, and all are alive from the first part on."""
OWN = {**EARLY, **CATS}
COMBO = {"combo_kernels": True, "benchmark_combo_kernel": False}
VARIANTS = {
    "fused": Variant(BASIC),
    "fused_rewritten": Variant(REWRITTEN, OWN),
    "fused_epilogues": Variant((*BASIC, "fold_batch_norm", *EPILOGUES)),
    "fused_combo": Variant(BASIC, COMBO),
    "fused_rewritten_combo": Variant(REWRITTEN, {**COMBO, **OWN}),
    "fused_company": Variant(COMPANY, OWN),
    "fused_company_combo": Variant(COMPANY, {**COMBO, **OWN}),
    "fused_1x1_as_mm": Variant(BASIC, {"conv_1x1_as_mm": True}),
    "fused_max_autotune": Variant(BASIC, {"max_autotune": True}),
}
"""By the name of the lowering (options.FUSED)."""

_COMPILING = threading.Lock()  # the converter is replaced for the whole process


class NoVariantError(LoweringError):
    """None can be had: of this model, or of any on this machine."""


def lower_fused(exported: ExportedProgram, inputs: Sequence[Tensor], lowering: str, weights: Weights) -> Program:
    """The program of ``exported`` for exactly these static inputs. ``lowering``: a name from VARIANTS.
    ``weights``: what the lowerings of one model share.

    Raises LoweringError with the reason where Inductor, Triton or this file cannot do it; NoVariantError where they can
    do no other variant, either, at any batch size.
    """
    if not inputs[0].is_cuda:
        raise NoVariantError("Inductor's kernels are taken apart for GPUs only")
    if not _triton.has_triton():
        raise NoVariantError("there is no Triton, or none for a GPU this old")
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise NoVariantError("Triton finds no C compiler: neither gcc nor clang, nor does the variable CC name one")
    variant = VARIANTS[lowering]
    try:
        with torch.inference_mode(False), torch.no_grad():
            examples = tuple(tensor.clone() for tensor in inputs)  # ordinary tensors
            module = _flat(apply(functional(exported), variant.rewrites, weights))
            expected = [_form(result) for result in module(*examples)]
            compiled = _compile(module, examples, {**OPTIONS, **variant.options})
        program = program_of(compiled, [Given(tensor, Kind.INPUT) for tensor in inputs], lowering)
        values = program.new_environment()
        for operator in range(len(program.graph)):
            program.run(operator, values)
        found = [_form(result) for result in program.results(values)]
        if found != expected:
            raise LoweringError(f"Inductor gives {found}, not {expected}")
        return replace(program, bodies=tuple(tuple(_finished(call, values) for call in b) for b in program.bodies))
    except LoweringError:
        raise
    except Exception as error:  # Inductor and Triton raise whatever they like
        raise LoweringError(f"Inductor: {first_line(error)}") from error


def _form(tensor: Tensor) -> str:
    return f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"


_OVERLOADS: dict[Any, Any] = {  # what the converter calls by PyTorch's functions
    torch.empty_strided: torch.ops.aten.empty_strided.default,
    torch.as_strided: torch.ops.aten.as_strided.default,
}


def _flat(module: GraphModule) -> GraphModule:
    """Without the structure of inputs and outputs, which not every module's can be written down, and without outputs
    that are no tensors."""
    graph = Graph()
    results: Any = graph.graph_copy(module.graph, {})
    graph.output(tuple(result for result in results if isinstance(result, Node)))
    return GraphModule(module, graph)


def _compile(module: GraphModule, inputs: tuple[Tensor, ...], options: Mapping[str, Any]) -> GraphModule:
    with (
        _COMPILING,
        _launches_as_nodes(),
        _without_results(),
        _seen_under_real_names(),
        _waits_first(options),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of Inductor to its own developers
        torch._dynamo.reset()  # the options of another variant
        compiled = torch._inductor.aot_compile(module, inputs, options=dict(options))
    assert isinstance(compiled, GraphModule)
    for node in compiled.graph.nodes:
        node.target = _OVERLOADS.get(node.target, node.target)
    return compiled


def _launches_as_nodes() -> AbstractContextManager[None]:
    from torch._inductor.codegen import wrapper_fxir  # noqa: PLC0415 - Inductor takes a second to import

    def generate(converter: Any, line: Any) -> None:
        tuner = converter.kernels[line.kernel_name].tuner
        arguments = converter._lookup_args(line.call_args)
        if tuner.heuristic_type.name == "USER_AUTOTUNE":
            raise NoVariantError(f"the model has a Triton kernel of its own: {tuner.fn.__name__}")
        nodes = [a if isinstance(a, Node) else converter._generate_sym_node(a) for a in arguments]
        converter.gm.graph.call_function(TritonLaunch(tuner), args=tuple(nodes))

    return _replaced(wrapper_fxir.FxConverter, "_generate_triton_call", generate)


def _without_results() -> AbstractContextManager[None]:
    """Operators that only write to what they are given, which the converter cannot: it looks up every operator's result
    to find shapes in it that depend on data, also where there are none to find."""
    from torch._inductor.codegen import wrapper_fxir  # noqa: PLC0415

    stock: Any = wrapper_fxir.FxConverter._generate_unbacked_symbol_defs

    def define(converter: Any, line: Any) -> None:
        if line.unbacked_bindings:
            stock(converter, line)

    return _replaced(wrapper_fxir.FxConverter, "_generate_unbacked_symbol_defs", define)


def _seen_under_real_names() -> AbstractContextManager[None]:
    """Inductor tiles a kernel by how it reads its operands, and overlooks those that an operator has written to: their
    dependencies have other names than their loads. Such a kernel would read channels_last images across."""
    from torch._inductor import tiling_utils  # noqa: PLC0415
    from torch._inductor.virtualized import V  # noqa: PLC0415

    stock: Any = tiling_utils.extract_normalized_read_writes

    def extract(node: Any) -> Any:
        before = node.read_writes
        node.read_writes = before.rename(V.graph.scheduler.mutation_real_name)
        try:
            return stock(node)
        finally:
            node.read_writes = before

    return _replaced(tiling_utils, "extract_normalized_read_writes", extract)


def _waits_first(options: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Kernels that may start early (EARLY) wait before all else, as early_start.py demands; Inductor's own first load
    what the kernel before them in its order has not written."""
    if not options.keys() & EARLY.keys():
        return nullcontext()
    from torch._inductor.codegen.triton import TritonKernel  # noqa: PLC0415

    stock: Any = TritonKernel._filter_pdl

    def filtered(kernel: Any, code: Any) -> None:
        stock(kernel, code)
        if kernel._enable_pdl_codegen():
            later = [line for line in code._lines if not (isinstance(line, str) and kernel.GDC_WAIT in line)]
            code._lines = [kernel.GDC_WAIT, *later]

    return _replaced(TritonKernel, "_filter_pdl", filtered)


@contextmanager
def _replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, before)


class TritonLaunch:
    """A Triton kernel as a node of the graph (calls.Kernel); tuned when it is first called."""

    def __init__(self, tuner: Any) -> None:
        self._tuner = tuner
        names = [name for name, kind in tuner.triton_meta["signature"].items() if kind != "constexpr"]
        changed = set(tuner.mutated_arg_names)
        pointers = {name for name in names if tuner.triton_meta["signature"][name].startswith("*")}
        outputs = {name for name in names if name.startswith("out_ptr")}
        inputs = {name for name in names if name.startswith(("in_ptr", "arg_"))}
        self.written = tuple(i for i, name in enumerate(names) if name in pointers - (inputs - changed))
        self.overwritten = tuple(i for i, name in enumerate(names) if name in outputs - changed)
        self.__name__ = self.__qualname__ = str(tuner.fn.__name__)  # FX prints and generates code with these
        self.__module__ = __name__

    def __call__(self, *arguments: Any) -> None:
        """On the current stream. Does nothing with fake tensors, which Inductor puts through the finished graph."""
        if not any(isinstance(argument, FakeTensor) for argument in arguments):
            self._tuner.run(*arguments, stream=torch.cuda.current_stream().cuda_stream)

    def __str__(self) -> str:
        return self.__name__

    def finished(self, call: Call) -> Call:
        """The call of this kernel as one of its machine code; the launcher itself tells the grid and the parameters.

        Raises LoweringError for a kernel that needs more than a plain launch.
        """
        (launcher,) = self._tuner.launchers
        told: list[Any] = []
        retold = {**launcher.__globals__, "runner": lambda *given: told.extend(given)}
        FunctionType(launcher.__code__, retold)(*call.args, stream=None)
        names = launcher.fn.arg_names
        given = dict(zip(names, told[-len(names) :], strict=True))
        types = self._tuner.triton_meta["signature"]
        launch, args = launch_of(launcher.bin, told[:3], [(types[name], given[name]) for name in launcher.call_args])
        return replace(call, target=launch, args=args)


def _finished(call: Call, values: Environment) -> Call:
    """Triton's kernels as machine code, of Inductor's and of our own making. ``values``: of a run."""
    if isinstance(call.target, TritonLaunch):
        return call.target.finished(call)
    triton_call = TRITON_CALLS.get(call.target)
    return call if triton_call is None else as_launch(call, values, triton_call)
