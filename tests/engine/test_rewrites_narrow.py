"""narrow_linears against eager."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from opara_server.engine.export import export_static
from opara_server.engine.rewrites import apply
from opara_server.engine.rewrites import functional as functional_form
from tests.engine.rewriting import TORCH_WARNS, assert_true_metadata, operators, rewritten, settled

pytestmark = TORCH_WARNS

PRODUCTS = {"linear", "addmm", "mm"}


class Between(nn.Module):
    """A product between two other calls."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.product(torch.tanh(x), self.weight))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(8, 1), (5, 8)),
        (nn.Linear(8, 4, bias=False), (2, 3, 8)),
        (Between(torch.mm, 8, 2), (32, 8)),
        (Between(lambda x, w: torch.addmm(w[0], x, w), 8, 3), (5, 8)),
    ],
    ids=["one column", "no bias", "mm", "addmm"],
)
def test_a_narrow_product_is_a_sum(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    graph = rewritten(settled(module), (x,), "narrow_linears")
    assert not operators(graph).keys() & PRODUCTS
    assert_true_metadata(graph, x)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(8, 5), (5, 8)),
        (nn.Linear(8, 1), (3, 11, 8)),
        (nn.Linear(8193, 1), (8, 8193)),
        (nn.Linear(8, 1), (8,)),
        (Between(lambda x, w: torch.addmm(w[0], x, w, beta=2), 8, 1), (5, 8)),
        (Between(nn.functional.linear, 8), (2, 3, 8)),
    ],
    ids=["wide", "many rows", "long", "a vector", "scaled", "a vector of weights"],
)
def test_any_other_product_stays(module: nn.Module, shape: tuple[int, ...]) -> None:
    assert operators(rewritten(settled(module), (torch.randn(shape),), "narrow_linears")).keys() & PRODUCTS


def test_sums_of_half_precision_are_exact_until_the_end() -> None:
    torch.manual_seed(0)
    module, x = nn.Linear(4096, 1).half(), torch.randn(1, 4096).half()
    nn.init.normal_(module.weight)
    exact = (x.double() @ module.weight.detach().double().t()).item()
    nn.init.constant_(module.bias, -exact)  # next to nothing is left, of which rounded products would leave nothing
    graph = apply(functional_form(export_static(module, (x,))), ["narrow_linears"])
    with torch.no_grad():
        out = graph(x)
    assert out.dtype == torch.float16
    assert float(out) == pytest.approx(exact + module.bias.item(), abs=1e-3)
    assert_true_metadata(graph, x)


def test_double_precision_stays() -> None:
    graph = apply(
        functional_form(export_static(nn.Linear(8, 1).double(), (torch.randn(1, 8).double(),))), ["narrow_linears"]
    )
    assert operators(graph)["linear"] == 1
