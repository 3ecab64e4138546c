"""Calls of Triton kernels, and what Triton compiles for them as plain data (kernel.py).

Triton (3.6) is known here by what it returns only: by functions that ``triton.jit`` has made, and by compiled kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from opara_server.engine.calls import refs
from opara_server.engine.early_start import may_start_early
from opara_server.engine.errors import LoweringError
from opara_server.engine.kernel import PARAMETER_TYPES, POINTER, KernelCode, KernelLaunch
from opara_server.engine.program import Call, Environment

COMPILED_IN = "constexpr"  # what a signature says of parameters that the machine code does not have


@dataclass(frozen=True)
class TritonCall:
    """``function[grid](*arguments)``. ``arguments``: for all of the kernel's parameters in their order; ``warps``: per
    block; ``flops``: of the products among what it computes."""

    function: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    warps: int
    flops: int

    def run(self) -> None:
        """On the current stream. Compiles the kernel where this process has not yet."""
        self.function[self.grid](*self.arguments, num_warps=self.warps)

    def compiled(self) -> tuple[KernelLaunch, tuple[Any, ...]]:
        """As machine code and its parameters: without the arguments that it was compiled for, which are those of
        ``tl.constexpr``, None and 1. Raises LoweringError as ``launch_of``."""
        kernel = self.function.warmup(*self.arguments, grid=self.grid, num_warps=self.warps)
        types = kernel.src.signature.values()
        given = [(kind, a) for kind, a in zip(types, self.arguments, strict=True) if kind != COMPILED_IN]
        launch, parameters = launch_of(kernel, self.grid, given)
        return replace(launch, flops=self.flops), parameters


def launch_of(
    kernel: Any, grid: Sequence[int], given: Sequence[tuple[Any, Any]]
) -> tuple[KernelLaunch, tuple[Any, ...]]:
    """What Triton has compiled, ready to be launched, and all of its parameters. ``given``: those that the source has,
    as (Triton's type, value), in order.

    Raises LoweringError for a kernel that needs more than a plain launch.
    """
    about = kernel.metadata
    scratch = [getattr(about, f"{use}_scratch_size", None) for use in ("global", "profile")]
    scratch = [size for size in scratch if size is not None]  # for each of these there is a pointer, also to no bytes
    unusual = any(scratch) or about.num_ctas != 1 or getattr(about, "launch_cooperative_grid", False)
    types = [POINTER if str(kind).startswith("*") else kind for kind, _ in given]
    if unusual or not PARAMETER_TYPES.issuperset(set(types) - {POINTER}):
        raise LoweringError(f"the Triton kernel {about.name} needs more than a plain launch")
    code = KernelCode(about.name, kernel.asm["cubin"], 32 * about.num_warps, about.shared)
    x, y, z = (*map(int, grid), 1, 1)[:3]
    early = getattr(about, "launch_pdl", False) and may_start_early(kernel.asm["ptx"])
    launch = KernelLaunch(code, (x, y, z), (*types, *[POINTER] * len(scratch)), early)
    return launch, (*(value for _, value in given), *[None] * len(scratch))


def as_launch(call: Call, values: Environment, triton_call: Callable[..., TritonCall]) -> Call:
    """The call of an operator that launches one Triton kernel, as the launch of its machine code. ``triton_call``: of
    the operator's arguments. ``values``: of a run, of which all is still there.

    Raises LoweringError as ``launch_of``, and where the kernel has other tensors than the operator is given.
    """
    args, kwargs = call.given(values)
    launch, parameters = triton_call(*args, **kwargs).compiled()
    known = {id(values[ref.value]): ref for ref in refs((call.args, dict(call.kwargs)))}
    if any(isinstance(parameter, Tensor) and id(parameter) not in known for parameter in parameters):
        raise LoweringError(f"{call.target} copies what it is given")
    return Call(launch, tuple(known.get(id(parameter), parameter) for parameter in parameters), {}, call.result)
