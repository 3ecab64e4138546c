"""Exports with a dynamic batch and without; reasons and the model's own lines where there is none."""

from __future__ import annotations

import logging
from io import BytesIO

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from opara_server.engine.errors import LoweringError, explained, model_line
from opara_server.engine.export import export_all, export_dynamic, export_static
from tests.engine.models import Branches, Function


def rows(count: int) -> tuple[Tensor, ...]:
    return (torch.randn(count, 8),)


class TwoInputs(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Stubborn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() > 1:
            x = x.tanh()
        return x


def test_one_program_serves_all_sizes_from_two_up() -> None:
    exported = export_dynamic(Branches().eval(), rows(6))
    assert exported is not None
    (limits,) = exported.range_constraints.values()
    assert (limits.lower, limits.upper) == (2, 6)


@pytest.mark.parametrize("module", [TwoInputs(), Function(lambda a, b: a + b)], ids=["named", "variadic"])
def test_inputs_share_the_batch_dimension(module: nn.Module) -> None:
    exported = export_dynamic(module.eval(), rows(4) + rows(4))
    assert exported is not None
    assert len(exported.range_constraints) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_no_range_no_dynamic_export(count: int) -> None:
    assert export_dynamic(Branches().eval(), rows(count)) is None


def test_a_fixed_batch_size_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "opara_server")
    fixed = Function(lambda x: x.view(4, 8) * 2).eval()
    assert export_dynamic(fixed, rows(4)) is None
    (record,) = [r for r in caplog.records if r.name.startswith("opara_server")]
    assert "no export with a dynamic batch (" in record.message
    assert "\n" not in record.message
    assert export_static(fixed, rows(4)) is not None


@pytest.mark.parametrize("count", [1, 4])
def test_an_export_of_a_model_that_returns_strings_can_be_loaded(count: int) -> None:
    module = Function(lambda x: {"name": "cats", "x": x * 2, "more": ["a", x + 1, 3, None]}).eval()
    exported = export_all(module, {count: rows(count)})[count]
    file = BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    (x,) = rows(count)
    found = [leaf for leaf in pytree.tree_leaves(torch.export.load(file).module()(x)) if isinstance(leaf, Tensor)]
    torch.testing.assert_close(found, [x * 2, x + 1])


def test_the_reason_names_the_models_own_line() -> None:
    with pytest.raises(LoweringError) as caught:
        export_static(Stubborn().eval(), rows(2))
    text = str(caught.value)
    assert text.startswith("torch.export: Could not guard on data-dependent expression")
    assert "test_export.py" in text
    assert text.endswith("in forward: if x.abs().max() > 1:)")
    assert "\n" not in text


def test_model_line_is_the_innermost_outside_of_pytorch() -> None:
    module = nn.Sequential(nn.Linear(3, 4), Function(lambda x: x @ torch.ones(9)))
    with pytest.raises(RuntimeError) as caught:
        module(torch.ones(2, 3))
    assert model_line(caught.value).endswith("Function(lambda x: x @ torch.ones(9)))")
    assert model_line(RuntimeError("raised nowhere")) == ""
    assert explained(RuntimeError("raised nowhere")) == "RuntimeError: raised nowhere"
    assert explained(KeyError()) == "KeyError"
