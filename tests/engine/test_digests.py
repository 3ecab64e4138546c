"""Two modules have one digest of calls exactly where they do the same with inputs of the same shapes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opara_server.engine.digests import calls_digest
from opara_server.engine.tensors import static_inputs
from tests.engine.models import ZOO, Branches, Case, Function

CPU = torch.device("cpu")


def digest(module: nn.Module, case: Case = ZOO["branches"], rows: int = 4) -> str:
    with torch.inference_mode():
        return calls_digest(module.eval(), static_inputs(case.inputs, rows, CPU, channels_last=False))


@pytest.mark.parametrize("case", ZOO.values(), ids=ZOO)
def test_the_same_module_has_the_same_digest_whatever_the_values_of_its_inputs(case: Case) -> None:
    assert digest(case.build(), case) == digest(case.build(), case)


class Table(nn.Module):
    """Holds a tensor that is neither a parameter nor a buffer."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.table = torch.full((8,), value)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class Twins(nn.Module):
    """Two weights of one shape; ``crossed``: which of them comes first."""

    def __init__(self, crossed: bool) -> None:
        super().__init__()
        self.one, self.two = (nn.Parameter(torch.ones(8)) for _ in range(2))
        self.crossed = crossed

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.two, self.one) if self.crossed else (self.one, self.two)
        return x * first - second


def accumulated(x: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    return total.add_(x).add_(total)


def added(x: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    return total.add_(x).add_(x)


DIFFERENT: list[tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = [
    (lambda: Branches(4), lambda: Branches(5)),
    (lambda: Table(1.0), lambda: Table(2.0)),
    (lambda: Twins(False), lambda: Twins(True)),
]
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]] = {
    "another operator": (torch.sin, torch.cos),
    "another number": (lambda x: x * 2, lambda x: x * 3),
    "a number of another type": (lambda x: x * 2, lambda x: x * 2.0),
    "another order of operands": (lambda x: x.sin() - x.cos(), lambda x: x.cos() - x.sin()),
    "operands crossed": (lambda x: torch.sub(a := x.sin(), x.cos() * a), lambda x: torch.sub(x.cos() * x.sin(), x)),
    "the result of another call": (lambda x: (x.sin(), x.cos())[0] + 1, lambda x: (x.sin(), x.cos())[1] + 1),
    "another output": (lambda x: (x.sin(), x.cos())[0], lambda x: (x.sin(), x.cos())[1]),
    "outputs in another order": (lambda x: (a := x.sin(), x.cos(), a)[:2], lambda x: (x.sin(), x.cos())[::-1]),
    "outputs under other names": (lambda x: {"a": x.sin()}, lambda x: {"b": x.sin()}),
    "another number as an output": (lambda x: (x.sin(), 1), lambda x: (x.sin(), 2)),
    "another argument by name": (lambda x: x.softmax(1), lambda x: x.softmax(1, dtype=torch.float64)),
    "another dtype": (lambda x: x.to(torch.float64), lambda x: x.to(torch.float16)),
    "written in place": (accumulated, added),
    "another literal": (lambda x: x + torch.tensor([1.0]), lambda x: x + torch.tensor([2.0])),
    "data that decides": (torch.sin, lambda x: x.sin() if x.sum() < 1e9 else x),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_modules_other_digests(one: Callable[[], nn.Module], other: Callable[[], nn.Module]) -> None:
    assert digest(one()) != digest(other())


@pytest.mark.parametrize(("one", "other"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_other_functions_other_digests(one: Callable[[Tensor], Any], other: Callable[[Tensor], Any]) -> None:
    assert digest(Function(one)) != digest(Function(other))


def test_each_batch_size_has_calls_of_its_own() -> None:
    special = Function(lambda x: x * 2 if x.shape[0] == 1 else x + x)
    assert digest(special, rows=1) == digest(Function(lambda x: x * 2), rows=1)
    assert digest(special, rows=2) == digest(Function(lambda x: x + x), rows=2)


def test_names_that_were_forgotten_are_not_given_again() -> None:
    """Tensors come and go; one that lies where another did is not that other."""

    def made_and_dropped(x: Tensor) -> Tensor:
        for _ in range(50):
            y = x.sin()
            del y
        return x.cos()

    assert len({digest(Function(made_and_dropped)) for _ in range(5)}) == 1


def test_the_module_stays_as_it_is() -> None:
    module = Branches()
    before = [weight.clone() for weight in module.parameters()]
    digest(module)
    assert all(torch.equal(now, then) for now, then in zip(module.parameters(), before, strict=True))


WATCH = """
import sys
import torch
import opara_server.engine.build
from opara_server.engine.digests import calls_digest
calls_digest(torch.nn.Linear(4, 4), [torch.ones(2, 4)])
print(sorted({"sympy", "torch._dynamo", "torch._inductor"} & sys.modules.keys()))
"""


def test_a_look_at_the_calls_imports_no_compiler() -> None:
    said = subprocess.run([sys.executable, "-c", WATCH], capture_output=True, text=True, timeout=280, check=True)
    assert said.stdout == "[]\n"
