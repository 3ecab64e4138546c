"""torch.compile: called as a user calls it, and captured in one sequential CUDA Graph.

In one graph nothing but its kernels is left: no guards, no copies of inputs. That is the harder baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch._inductor.config
from torch import Tensor, nn

from bench.subject import Subject
from bench.systems.runners import Called, Function, PlainGraph
from bench.systems.system import Capture, Prepared

Options = Mapping[str, str | int | bool | Callable[..., Any]]


def called(mode: str) -> Callable[[Subject], Capture]:
    """End to end, in one of torch.compile's modes that make CUDA Graphs of their own.

    These are made right here: doing so frees the cuBLAS workspaces that graphs captured before still use
    (pytorch/pytorch#193402).
    """

    def compile_module(subject: Subject) -> Capture:
        function = _compiled(subject, mode=mode)

        def step(*inputs: Tensor) -> tuple[Tensor, ...]:
            torch.compiler.cudagraph_mark_step_begin()  # nobody needs the outputs of the run before
            return function(*inputs)

        runner = Called(step, subject.inputs)
        return lambda: Prepared(runner, detail=mode)

    return compile_module


def in_one_graph(mode: str | None = None, options: Options | None = None) -> Callable[[Subject], Capture]:
    """``options``: of Inductor; they exclude a mode."""

    def compile_module(subject: Subject) -> Capture:
        # Dynamo looks at the global `freezing`, too: as an option alone it would fold nothing. And as a global alone it
        # would not tell this compiled module from another one's in Dynamo's cache.
        with torch._inductor.config.patch({**(options or {})}):
            function = _compiled(subject, mode=mode, options=options)
            function(*subject.inputs)

        def capture() -> Prepared:
            runner = PlainGraph(function, subject.inputs)
            detail = ", ".join(options or ()) or mode or "default"
            return Prepared(runner, streams=1, lowering="inductor", peak_bytes=runner.peak_bytes, detail=detail)

        return capture

    return compile_module


def _compiled(subject: Subject, mode: str | None = None, options: Options | None = None) -> Function:
    chosen = {**options} if options else None
    compiled = cast(nn.Module, torch.compile(subject.module, dynamic=False, mode=mode, options=chosen))
    return lambda *inputs: subject.flat.run(compiled, inputs)
