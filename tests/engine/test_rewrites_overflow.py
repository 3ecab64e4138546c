"""overflow_clamps against eager."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from opara_server.engine.export import export_static
from opara_server.engine.rewrites import apply, functional
from tests.engine.rewriting import TORCH_WARNS, assert_true_metadata, operators

pytestmark = TORCH_WARNS
MOST = torch.finfo(torch.float16).max


class Clamped(nn.Module):
    """A layer of T5 as the transformers library has it."""

    def __init__(self, margin: float = 1000.0, other: float = MOST) -> None:
        super().__init__()
        self.margin, self.other = margin, other

    def forward(self, x: Tensor) -> Tensor:
        hidden = x * 4
        bound = torch.where(torch.isinf(hidden).any(), MOST - self.margin, self.other)
        return torch.clamp(hidden, min=-bound, max=bound) / 2


def clamped(module: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    return apply(functional(export_static(module, (x,))), ["overflow_clamps"])


@pytest.mark.parametrize(
    "x", [[1.0, -16376.0, 3.0], [1.0, 20000.0, float("nan")], [float("inf"), -20000.0, 7.0]], ids=str
)
def test_infinities_become_large_numbers(x: list[float]) -> None:
    given = torch.tensor(x, dtype=torch.float16)
    graph = clamped(Clamped(), given)
    assert operators(graph).keys().isdisjoint({"any"})
    torch.testing.assert_close(graph(given), Clamped()(given), rtol=0, atol=0, equal_nan=True)
    assert_true_metadata(graph, given)


def test_an_infinity_changes_no_other_element() -> None:
    x = torch.tensor([16376.0, 20000.0], dtype=torch.float16)
    assert clamped(Clamped(), x)(x).tolist() == [32752.0, 32256.0]


def test_what_a_fused_kernel_does_not_round_is_clamped() -> None:
    """Inductor computes in float32 what is between two float16 tensors: an overflow is no infinity there."""
    graph = clamped(Clamped(), torch.ones(1, dtype=torch.float16))
    assert graph(torch.tensor([20000.0])).tolist() == [MOST / 2]


@pytest.mark.parametrize("module", [Clamped(-1.0), Clamped(other=1.0)], ids=["no less", "clamps what is finite"])
def test_any_other_clamp_stays(module: nn.Module) -> None:
    assert "any" in operators(clamped(module, torch.ones(3, dtype=torch.float16)))
