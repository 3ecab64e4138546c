"""optimize(): a module in, a callable of the same signature out."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opara_server.engine import OptimizedModel, optimize
from opara_server.engine.errors import ModelError
from opara_server.engine.plan import Plan
from tests.engine.models import Branches, ConvBranches, Function, Pair


@pytest.fixture(scope="module")
def branches() -> Iterator[tuple[nn.Module, OptimizedModel]]:
    module = Branches().eval()
    fast = optimize(module, torch.randn(1, 8), batch_sizes=[1, 4], device="cpu")
    yield module, fast
    fast.close()


Both = tuple[nn.Module, OptimizedModel]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 11])
def test_any_number_of_rows(branches: Both, rows: int) -> None:
    module, fast = branches
    x = torch.randn(rows, 8)
    torch.testing.assert_close(fast(x), module(x))


def test_padding_changes_no_row(branches: Both) -> None:
    module, fast = branches
    fast(torch.full((4, 8), torch.nan))  # what the static inputs hold now
    x = torch.randn(3, 8)
    torch.testing.assert_close(fast(x), module(x))
    mixed = torch.stack([x[0], torch.full((8,), torch.inf), x[1]])
    torch.testing.assert_close(fast(mixed)[[0, 2]], module(x[:2]))


def test_results_are_the_callers_own(branches: Both) -> None:
    module, fast = branches
    first_input, second_input = torch.randn(4, 8), torch.randn(4, 8)
    first = fast(first_input)
    second = fast(second_input)
    torch.testing.assert_close(first, module(first_input))
    first.zero_()
    first.requires_grad_().sum().backward()
    torch.testing.assert_close(second, module(second_input))
    torch.testing.assert_close(fast(second_input), second)
    assert not second.is_inference()


def test_the_callers_inputs_stay_as_they_are() -> None:
    fast = optimize(Function(lambda x: x.add_(1)).eval(), torch.zeros(2, 3), batch_sizes=[2], device="cpu")
    given = torch.zeros(2, 3)
    assert fast(given).tolist() == [[1.0] * 3] * 2
    assert fast(given).tolist() == [[1.0] * 3] * 2
    assert given.tolist() == [[0.0] * 3] * 2
    fast.close()


def test_inputs_of_any_layout_that_need_gradients(branches: Both) -> None:
    module, fast = branches
    x = torch.randn(8, 4, requires_grad=True).t()
    torch.testing.assert_close(fast(x), module(x).detach())


def test_the_modules_own_structure() -> None:
    module = ConvBranches().eval()
    fast = optimize(module, torch.randn(1, 3, 8, 8), batch_sizes=[2], channels_last=True)
    image = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(fast(image), module(image))
    fast.close()


def test_several_inputs_and_integers_in_the_examples_range() -> None:
    table = nn.Embedding(7, 4)

    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = table

        def forward(self, ids: Tensor, scale: Tensor) -> Pair:
            return Pair(self.table(ids) * scale, ids + 1)

    module = Lookup().eval()
    fast = optimize(module, [torch.tensor([[0, 6]]), torch.ones(1, 1, 1)], batch_sizes=[1, 2])
    ids, scale = torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.randn(3, 1, 1)
    found = fast(ids, scale)
    assert isinstance(found, Pair)
    torch.testing.assert_close(found, module(ids, scale))
    for outside in (-1, 7):
        with pytest.raises(ValueError, match=rf"input0: values in \[0, 7\) expected.*; {min(outside, 0)} to "):
            fast(torch.tensor([[0, outside]]), torch.ones(1, 1, 1))
    fast.close()


def test_a_range_that_is_wider_than_the_example() -> None:
    module = nn.Embedding(7, 4).eval()
    fast = optimize(module, torch.zeros(1, 2, dtype=torch.int64), ranges=[(0, 7)], policy="sequential")
    ids = torch.tensor([[5, 6]])
    torch.testing.assert_close(fast(ids), module(ids))
    with pytest.raises(ValueError, match=r"values in \[0, 7\)"):
        fast(ids + 1)
    fast.close()
    with pytest.raises(ValueError, match="0 ranges for 1 example inputs"):
        optimize(module, torch.zeros(1, 2, dtype=torch.int64), ranges=[])


@pytest.mark.parametrize(
    "inputs",
    [
        (),
        (torch.zeros(2, 8), torch.zeros(2, 8)),
        (torch.zeros(2, 7),),
        (torch.zeros(8),),
        (torch.zeros(2, 8, 1),),
        (torch.zeros(()),),
        (torch.zeros(0, 8),),
        (torch.zeros(2, 8, dtype=torch.float64),),
        (torch.zeros(2, 8, dtype=torch.int32),),
        ([[0.0] * 8],),
        (None,),
    ],
)
def test_inputs_that_do_not_fit(branches: Both, inputs: tuple[Any, ...]) -> None:
    module, fast = branches
    with pytest.raises(ValueError, match="expected"):
        fast(*inputs)
    x = torch.randn(2, 8)
    torch.testing.assert_close(fast(x), module(x))


def test_inputs_of_different_numbers_of_rows() -> None:
    fast = optimize(Function(torch.add).eval(), [torch.zeros(1, 3)] * 2, device="cpu")
    with pytest.raises(ValueError, match=r"^input1 has 1 rows, input0 2$"):
        fast(torch.zeros(2, 3), torch.zeros(1, 3))
    fast.close()


def test_threads_take_turns(branches: Both) -> None:
    module, fast = branches
    wrong: list[Tensor] = []

    def call(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for rows in (1, 3, 4, 6) * 10:
            x = torch.randn(rows, 8, generator=generator)
            if not torch.allclose(fast(x), module(x), atol=1e-5):
                wrong.append(x)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_plan_is_there_and_saved(tmp_path: Path) -> None:
    for reused, folder in ((False, tmp_path), (True, str(tmp_path))):
        fast = optimize(Branches().eval(), torch.randn(1, 8), policy="opara", cache_dir=folder)
        assert isinstance(fast.plan, Plan)
        assert (fast.plan.model, fast.plan.device, fast.plan.reused) == ("Branches", "cpu", reused)
        fast.close()


def test_what_cannot_be_optimized() -> None:
    with pytest.raises(ModelError, match="training mode"):
        optimize(Branches(), torch.randn(1, 8), device="cpu")
    with pytest.raises(ValueError, match="input0: an example input needs a batch dimension"):
        optimize(Branches().eval(), torch.tensor(1.0))
    with pytest.raises(ValueError, match="input0: a tensor expected, list given"):
        optimize(Branches().eval(), [[1.0, 2.0]])  # type: ignore[list-item]
    with pytest.raises(ModelError, match="takes no tensor"):
        optimize(Branches().eval(), [])
    with pytest.raises(ValueError, match="batch sizes must be positive"):
        optimize(Branches().eval(), torch.randn(1, 8), batch_sizes=[])


def test_the_package_gives_the_function_and_imports_torch_only_for_it() -> None:
    script = """
import sys
from opara_server import engine
import opara_server.engine.schedule, opara_server.engine.policies, opara_server.engine.simulate
import opara_server.engine.plan, opara_server.engine.trace
assert "torch" not in sys.modules
from opara_server.engine import optimize
from opara_server.engine import optimize as again
assert "torch" in sys.modules
assert callable(optimize) and optimize is again is engine.optimize
try:
    engine.optimise
except AttributeError as error:
    assert "optimise" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=280)
