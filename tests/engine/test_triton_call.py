"""What Triton compiles, as launches. A class plays its compiler; the real one is in tests/gpu/test_kernels.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from opara_server.engine.errors import LoweringError
from opara_server.engine.kernel import KernelCode, KernelLaunch
from opara_server.engine.program import Call, Ref
from opara_server.engine.triton_call import TritonCall, as_launch, launch_of

WAITS = """
.visible .entry kernel(.param .u64 kernel_param_0)
{
	griddepcontrol.wait;
	ret;
}
"""


@dataclass
class Function:
    """As ``triton.jit`` makes them: with parameters of these types, compiled to what ``about`` changes."""

    types: tuple[Any, ...]
    about: dict[str, Any] = field(default_factory=dict)
    warmed: list[Any] = field(default_factory=list)

    def warmup(self, *arguments: Any, grid: tuple[int, ...], num_warps: int) -> Any:
        self.warmed.append((arguments, grid))
        usual = {"num_warps": num_warps, "num_ctas": 1, "shared": 96, "global_scratch_size": 0, "name": "kernel"}
        return SimpleNamespace(
            src=SimpleNamespace(signature={f"p{i}": kind for i, kind in enumerate(self.types)}),
            metadata=SimpleNamespace(**{**usual, "profile_scratch_size": 0, **self.about}),
            asm={"cubin": b"machine code", "ptx": WAITS},
        )


def test_what_the_compiler_knew_is_no_parameter() -> None:
    function = Function(("*fp16", "constexpr", "i32", "constexpr", "*fp32", "fp32"))
    x, out = torch.zeros(3), torch.zeros(4)
    arguments = (x, 128, 7, None, out, 0.5)
    launch, parameters = TritonCall(function, (5, 2), arguments, warps=4, flops=11).compiled()
    code = KernelCode("kernel", b"machine code", threads=128, shared_bytes=96)
    assert launch == KernelLaunch(code, (5, 2, 1), ("pointer", "i32", "pointer", "fp32", *["pointer"] * 2), flops=11)
    assert parameters[0] is x
    assert parameters[2] is out
    assert (parameters[1], parameters[3:]) == (7, (0.5, None, None))
    assert function.warmed == [(arguments, (5, 2))]


def test_scratch_that_a_version_does_not_have_is_no_parameter() -> None:
    kernel = Function((), {"profile_scratch_size": None}).warmup(grid=(1,), num_warps=1)
    assert launch_of(kernel, (1,), [])[1] == (None,)


def test_only_what_was_compiled_for_it_starts_early() -> None:
    for pdl in (False, True):
        kernel = Function((), {"launch_pdl": pdl}).warmup(grid=(1,), num_warps=1)
        assert launch_of(kernel, (1,), [])[0].early == pdl


@pytest.mark.parametrize(
    ("kind", "about"),
    [
        ("*fp16", {"global_scratch_size": 128}),
        ("*fp16", {"num_ctas": 2}),
        ("*fp16", {"launch_cooperative_grid": True}),
        ("nvTmaDesc", {}),
        (("*fp16", "i32"), {}),
    ],
    ids=str,
)
def test_what_needs_more_than_a_plain_launch_is_refused(kind: object, about: dict[str, Any]) -> None:
    with pytest.raises(LoweringError, match="kernel needs more than a plain launch"):
        TritonCall(Function((kind,), about), (1,), (torch.zeros(1),), warps=4, flops=0).compiled()


def scaled(x: Tensor, scale: float, out: Tensor) -> TritonCall:
    """Of an operator that copies what is not contiguous."""
    arguments = (x.contiguous(), out, scale, x.numel())
    return TritonCall(Function(("*fp32", "*fp32", "fp32", "constexpr")), (1,), arguments, warps=1, flops=0)


def test_parameters_are_what_the_operator_is_given_in_each_run() -> None:
    values = [torch.zeros(2, 3), torch.zeros(2, 3), None]
    call = as_launch(Call(abs, (Ref(0), 2.0), {"out": Ref(1)}, 2), values, scaled)
    assert isinstance(call.target, KernelLaunch)
    assert call == Call(call.target, (Ref(0), Ref(1), 2.0, None, None), {}, 2)


def test_one_that_copies_first_is_refused() -> None:
    values = [torch.zeros(3, 2).mT, torch.zeros(2, 3), None]
    with pytest.raises(LoweringError, match="copies what it is given"):
        as_launch(Call(abs, (Ref(0), 2.0), {"out": Ref(1)}, 2), values, scaled)
