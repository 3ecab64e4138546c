"""Random modules (views, in-place writes, allocations filled later), exported, lowered and captured, against eager.

A module is a list of steps on a pool of tensors. Whatever a step makes joins the pool, so that later steps write to
views of views of inputs, and read what was written through another view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from opara_server.engine.capture import capture
from opara_server.engine.device_cpu import CpuDevice
from opara_server.engine.errors import LoweringError
from opara_server.engine.export import export_dynamic, export_static
from opara_server.engine.lower_aten import lower
from opara_server.engine.policies import make_schedule
from opara_server.engine.program import Program
from opara_server.engine.schedule import Schedule, compact
from tests.engine.dags import QUICK_POLICIES, random_profile

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch finds fault with many a random module

ROWS = 4
REPLAYS = 3
LARGEST = 512  # elements of a tensor in the pool
TYPES = (torch.float32, torch.int64, torch.int32, torch.uint8, torch.bool)
BITS = (torch.int32, torch.float32, torch.uint8, torch.int16, torch.int64)

Operation = Callable[[Tensor, Tensor, int], Any]


def half(x: Tensor) -> int:
    return x.shape[-1] // 2


READS: dict[str, Operation] = {
    "sin": lambda x, _y, _c: x.sin(),
    "square": lambda x, _y, _c: x.square(),
    "clone": lambda x, _y, _c: x.clone(),
    "add": lambda x, y, _c: x + y,
    "mul": lambda x, y, _c: x * y,
    "sub scalar": lambda x, _y, c: x - c,
    "where": lambda x, y, _c: torch.where(x > 0, x, y),
    "cast": lambda x, _y, c: x.nan_to_num(0, 9, -9).to(TYPES[c % len(TYPES)]),
    "sum": lambda x, _y, c: x.sum(c % x.dim(), keepdim=c > 4),
    "max": lambda x, _y, _c: x.max(-1),
    "softmax": lambda x, _y, _c: x.softmax(-1),
    "cat": lambda x, y, _c: torch.cat([x, y], -1),
    "stack": lambda x, y, c: torch.stack([x, y, x], c % 2),
    "matmul": lambda x, y, _c: x @ y,
    "inner": lambda x, y, _c: x @ y.mT,
    "index": lambda x, _y, _c: x[..., [0, 1]],
    "arange": lambda _x, _y, _c: torch.arange(8.0),
    "places": lambda x, _y, _c: torch.arange(x.shape[-1], device=x.device),
    "full": lambda _x, _y, c: torch.full((8,), c),
    "literal": lambda _x, _y, c: torch.tensor([1.0, 2, 3, c]),
    "zeros like": lambda x, _y, c: torch.zeros_like(x, dtype=TYPES[c] if c < len(TYPES) else None),
    "new zeros": lambda x, _y, _c: x.new_zeros(x.shape[0], 8),
    # views, some of them copies where the strides want it
    "view": lambda x, _y, _c: x.view(x.shape[0], -1, 2),
    "reshape": lambda x, _y, _c: x.reshape(x.shape[0], -1),
    "flatten": lambda x, _y, c: x.flatten(c % x.dim()),
    "unflatten": lambda x, _y, _c: x.unflatten(-1, (2, -1)),
    "transpose": lambda x, _y, c: x.transpose(c % x.dim(), -1),
    "permute": lambda x, _y, _c: x.permute(*range(1, x.dim()), 0),
    "contiguous": lambda x, _y, _c: x.contiguous(),
    "slice": lambda x, _y, c: x[..., c % 4 : 6],
    "stepped": lambda x, _y, c: x[..., :: 2 + c % 2],
    "rows": lambda x, _y, _c: x[1:3],
    "narrow": lambda x, _y, c: x.narrow(-1, c % 3, 2),
    "select": lambda x, _y, c: x.select(c % x.dim(), 1),
    "diagonal": lambda x, _y, _c: x.diagonal(0, -2, -1),
    "unbind": lambda x, _y, _c: x[..., :4].unbind(-1),
    "split": lambda x, _y, _c: x.split(3, -1),
    "chunk": lambda x, _y, c: x.chunk(2, c % x.dim()),
    "expand": lambda x, _y, _c: x.unsqueeze(1).expand(-1, 2, *x.shape[1:]),
    "expand as": lambda x, y, _c: x.expand_as(y),
    "unsqueeze": lambda x, _y, c: x.unsqueeze(c % (x.dim() + 1)),
    "squeeze": lambda x, _y, _c: x.squeeze(),
    "detach": lambda x, _y, _c: x.detach(),
    "bits": lambda x, _y, c: x.view(BITS[c % len(BITS)]),
    "complex": lambda x, _y, _c: torch.view_as_complex(x.unflatten(-1, (-1, 2))),
    "view as real": lambda x, _y, _c: torch.view_as_real(x),
    "real": lambda x, _y, _c: x.real,
    "imag": lambda x, _y, _c: x.imag,
    "conj": lambda x, _y, _c: x.conj(),
}
WRITES: dict[str, Operation] = {  # the first operand
    "add_": lambda x, _y, _c: x.add_(1),
    "mul_": lambda x, y, _c: x.mul_(y),
    "relu_": lambda x, _y, _c: x.relu_(),
    "clamp_": lambda x, _y, _c: x.clamp_(-1, 1),
    "silu_": lambda x, _y, _c: functional.silu(x, inplace=True),
    "logical_not_": lambda x, _y, _c: x.logical_not_(),
    "copy_": lambda x, y, _c: x.copy_(y),
    "copy_ to slice": lambda x, y, _c: x[..., : half(x)].copy_(y[..., : half(x)]),
    "masked_fill_": lambda x, _y, _c: x.masked_fill_(x > 0, 3),
    "zero_": lambda x, _y, c: x[..., c % 3 :].zero_(),
    "index_put_": lambda x, _y, _c: x.index_put_((torch.tensor([0, 1]),), torch.tensor(5).to(x.dtype)),
    "set slice": lambda x, y, _c: x.__setitem__((..., slice(half(x), None)), y[..., half(x) :]),
    "set number": lambda x, _y, c: x.__setitem__((slice(1, 3), 0), c),
    "unsqueeze_": lambda x, _y, c: x.unsqueeze_(c % (x.dim() + 1)),
    "transpose_": lambda x, _y, _c: x.transpose_(0, -1),
    "foreach": lambda x, _y, _c: torch._foreach_add_([x, x], 1),
    "out": lambda x, y, c: torch.add(y.expand_as(x), c, out=x),
}
ALLOCATES: dict[str, Operation] = {  # filled by a later step, through what `seen_through` makes of it
    "empty": lambda x, _y, _c: torch.empty(x.shape),
    "empty_like": lambda x, _y, _c: torch.empty_like(x),
    "empty_like double": lambda x, _y, _c: torch.empty_like(x, dtype=torch.float64),
    "new_empty": lambda x, _y, _c: x.new_empty(x.shape),
    "new_empty of two": lambda x, y, _c: x.new_empty(y.shape[:1] + x.shape[1:], dtype=y.dtype),
    "new_empty_strided": lambda x, _y, _c: x.new_empty_strided((4, 8), (1, 4)),
}
FILL = ("fill", "fill halves")
NAMES = (*READS, *WRITES, *WRITES, *ALLOCATES, *FILL, *FILL, *FILL)


def seen_through(x: Tensor, c: int) -> Tensor:
    return (x, x.transpose(0, -1), x.view(x.shape[0], -1), x.unsqueeze(0))[c % 4]


class Step(NamedTuple):
    """The operands are counted from the pool's end."""

    name: str
    a: int
    b: int
    c: int


@dataclass(frozen=True)
class Pool:
    """``raw``: allocated, not yet filled, each with the view to fill it through."""

    tensors: list[Tensor]
    raw: list[tuple[Tensor, Tensor]]

    def operands(self, step: Step) -> tuple[Tensor, Tensor]:
        return self.tensors[-1 - step.a % len(self.tensors)], self.tensors[-1 - step.b % len(self.tensors)]

    def take(self, step: Step) -> None:
        x, y = self.operands(step)
        if step.name in FILL:
            self._fill(step, x, y)
        elif step.name in ALLOCATES:
            made = ALLOCATES[step.name](x, y, step.c)
            self.raw.append((made, seen_through(made, step.c)))
        elif step.name in WRITES:
            WRITES[step.name](x, y, step.c)
        else:
            results = READS[step.name](x, y, step.c)
            self.tensors.extend([results] if isinstance(results, Tensor) else results)

    def _fill(self, step: Step, x: Tensor, y: Tensor) -> None:
        made, view = self.raw.pop(step.a % len(self.raw))
        if step.name == "fill":
            view.copy_(y)
        else:
            view[..., : half(view)] = x[..., : half(view)]
            view[..., half(view) :] = y[..., half(view) :]
        self.tensors.extend((view, made))


class Steps(nn.Module):
    """Takes a float and an int input; returns the pool's tensors at ``outputs``, counted from its end."""

    def __init__(self, steps: Sequence[Step], outputs: Sequence[int]) -> None:
        """Steps that eager refuses as they are, or with the next few operands, are left out."""
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(8, 8, generator=generator), requires_grad=False)
        self.steps: list[Step] = []
        self.outputs = outputs
        pool = Pool([*random_inputs(generator), self.weight[0]], [])
        for step in steps:
            for b in range(step.b, step.b + 4):
                candidate = step._replace(b=b)
                if (after := self._tried(candidate, pool)) is not None:
                    self.steps.append(candidate)
                    pool = after
                    break

    def _tried(self, step: Step, pool: Pool) -> Pool | None:
        x, _ = pool.operands(step)
        if step.name in WRITES and x.untyped_storage().data_ptr() == self.weight.untyped_storage().data_ptr():
            return None
        after = Pool(list(pool.tensors), list(pool.raw))
        try:
            after.take(step)
        except Exception:  # noqa: BLE001 - PyTorch raises whatever it likes
            return None
        return after if all(tensor.numel() <= LARGEST for tensor in after.tensors) else None

    def forward(self, x: Tensor, n: Tensor) -> tuple[Tensor, ...]:
        pool = Pool([x, n, self.weight[0]], [])
        for step in self.steps:
            pool.take(step)
        return tuple(pool.tensors[-1 - place % len(pool.tensors)] for place in self.outputs)


def random_inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(ROWS, 8, generator=generator), torch.randint(-5, 5, (ROWS, 8), generator=generator)


def lowered(module: Steps) -> Program | None:
    """None where torch.export or the lowering refuses the module."""
    inputs = random_inputs(torch.Generator().manual_seed(1))
    try:
        exported = export_dynamic(module, [tensor.clone() for tensor in inputs])
        exported = exported or export_static(module, [tensor.clone() for tensor in inputs])
        return lower(exported, inputs)
    except LoweringError:
        return None


def schedules(program: Program) -> Iterator[Schedule]:
    profile = random_profile(program.graph, Random(0))
    for policy in QUICK_POLICIES:
        schedule = make_schedule(program.graph, profile, policy)
        yield from (schedule, compact(program.graph, schedule))


def comparable(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor.resolve_neg()


def assert_replays_are_eager(module: Steps, program: Program, device: CpuDevice) -> None:
    generator = torch.Generator().manual_seed(2)
    for schedule in {s.steps: s for s in schedules(program)}.values():
        captured = capture(program, schedule, device)
        for _ in range(REPLAYS):
            inputs = random_inputs(generator)
            expected = [comparable(output) for output in module(*[tensor.clone() for tensor in inputs])]
            for static, given_ in zip(captured.inputs, inputs, strict=True):
                static.copy_(given_)
            for output in captured.outputs:
                output.fill_(77)
            captured.replay()
            found = [comparable(output) for output in captured.outputs]
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        captured.close()


@pytest.fixture
def device() -> Iterator[CpuDevice]:
    opened = CpuDevice(threads=4)
    with opened.bind():
        yield opened
    opened.close()


numbers = st.integers(0, 9)
steps = st.builds(Step, st.sampled_from(NAMES), numbers, numbers, numbers)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, min_size=4, max_size=20), st.lists(numbers, min_size=1, max_size=5))
def test_random_modules(device: CpuDevice, taken: list[Step], outputs: list[int]) -> None:
    module = Steps(taken, outputs)
    program = lowered(module)
    assume(program is not None)
    assert program is not None
    assert_replays_are_eager(module, program, device)


def test_hardly_any_module_is_refused(device: CpuDevice) -> None:
    refused, largest = 0, 0
    for seed in range(20):
        random = Random(seed)
        taken = [Step(random.choice(NAMES), *(random.randrange(10) for _ in range(3))) for _ in range(25)]
        program = lowered(module := Steps(taken, [0, 1, 2, 5]))
        if program is None:
            refused += 1
        else:
            largest = max(largest, len(program.graph))
            assert_replays_are_eager(module, program, device)
    assert refused <= 4
    assert largest >= 12


def test_a_view_in_place_leaves_its_aliases_their_shape(device: CpuDevice) -> None:
    module = Steps([Step("detach", 2, 0, 0), Step("unsqueeze_", 0, 0, 0), Step("square", 3, 0, 0)], [0, 1, 3])
    assert [step.name for step in module.steps] == ["detach", "unsqueeze_", "square"]
    program = lowered(module)
    assert program is not None
    assert [tuple(output.shape) for output in program.run_in_order()] == [(4, 8), (1, 4, 8), (4, 8)]
    assert_replays_are_eager(module, program, device)
