"""torch.compile: called as a user calls it, and captured in one sequential CUDA Graph.

In one graph nothing but its kernels is left: no guards, no copies of inputs. That is the harder baseline.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, cast

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.fx import GraphModule

from bench.subject import Subject
from bench.systems.runners import Called, Function, PlainGraph
from bench.systems.system import Capture, Prepared

InputType = Tensor | int | torch.SymInt | None


def called(mode: str) -> Callable[[Subject], Capture]:
    """End to end, in one of torch.compile's modes that make CUDA Graphs of their own.

    These are made right here: doing so frees the cuBLAS workspaces that graphs captured before still use
    (pytorch/pytorch#193402).
    """

    def compile_module(subject: Subject) -> Capture:
        function = _flat(subject, torch.compile(subject.module, dynamic=False, mode=mode))

        def step(*inputs: Tensor) -> tuple[Tensor, ...]:
            torch.compiler.cudagraph_mark_step_begin()  # nobody needs the outputs of the run before
            return function(*inputs)

        runner = Called(step, subject.inputs)
        return lambda: Prepared(runner, detail=mode)

    return compile_module


def in_one_graph(**options: bool) -> Callable[[Subject], Capture]:
    """``options``: of Inductor."""

    def compile_module(subject: Subject) -> Capture:
        kept: list[object] = []  # Dynamo may be made to forget what it compiled while the graph still runs its kernels

        def backend(module: GraphModule, inputs: list[InputType]) -> Callable[..., Any]:
            compiled: Callable[..., Any] = torch._inductor.compile(module, inputs, dict(options))
            kept.append(compiled)
            return compiled

        # Dynamo looks at the global `freezing`: as an option of Inductor alone it would fold nothing.
        with torch._inductor.config.patch(dict(options)):
            function = _flat(subject, torch.compile(subject.module, dynamic=False, backend=backend))
            function(*subject.inputs)

        def capture() -> Prepared:
            runner = PlainGraph(function, subject.inputs, kept)
            detail = ", ".join(options) or "default"
            return Prepared(runner, streams=1, lowering="inductor", peak_bytes=runner.peak_bytes, detail=detail)

        return capture

    return compile_module


def forget() -> None:
    """Free what ``called`` made: its graphs and their memory would count as other systems'. What runs in one graph
    stays."""
    torch.compiler.reset()
    gc.collect()


def _flat(subject: Subject, compiled: Callable[..., Any]) -> Function:
    return lambda *inputs: subject.flat.run(cast(nn.Module, compiled), inputs)
