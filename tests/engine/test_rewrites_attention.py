"""attention against eager, and its operator against the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from opara_server.engine.export import export_dynamic, export_static
from opara_server.engine.rewrites import Weights, apply
from opara_server.engine.rewrites import functional as functional_form
from opara_server.engine.rewrites.attention_operator import attention
from tests.engine.rewriting import TORCH_WARNS, assert_true_metadata, operators, rewritten

pytestmark = TORCH_WARNS
PASSES = ("fold_constants", "attention")


class Attending(nn.Module):
    """Two heads of 4 channels over the rows of ``x`` [B, K, 8], with what ``options`` say besides."""

    mask: Tensor | None

    def __init__(self, mask: Tensor | None = None, queries: int | None = None, heads: int = 2, **options: Any) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.register_buffer("mask", mask)
        self.queries, self.heads, self.options = queries, heads, options

    def forward(self, x: Tensor) -> Tensor:
        query, key, val = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.project(x).chunk(3, -1)
        )
        mask = self.mask if self.options.get("bias") is None else self.options["bias"](x)
        options = {name: option for name, option in self.options.items() if name != "bias"}
        query = query if self.queries is None else query[:, :, : self.queries]
        mixed = functional.scaled_dot_product_attention(query, key, val, mask, **options)
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return attended


def some_hidden(*shape: int) -> Tensor:
    mask = torch.ones(shape, dtype=torch.bool)
    mask[..., 1:3] = False
    return mask


CASES = {
    "per head": Attending(torch.randn(1, 2, 8, 8), scale=1.0),
    "one for all": Attending(torch.randn(8, 8)),
    "of a batch": Attending(torch.randn(3, 1, 1, 8)),
    "three dimensions": Attending(torch.randn(2, 8, 8)),
    "keys that are no multiple": Attending(torch.randn(2, 6, 6)),
    "more keys than queries": Attending(torch.randn(5, 8), queries=5),
    "what is hidden": Attending(some_hidden(8, 8)),
    "what is hidden of a few": Attending(some_hidden(1, 1, 6)),
    "of the input": Attending(bias=lambda x: x[:, None, :, :] * 2),
    "hidden by the input": Attending(bias=lambda x: (x[:, None, :, 0] > -9)[:, :, None, :]),
    "a view of the input": Attending(bias=lambda x: x[:, :, :7].transpose(1, 2).unsqueeze(1)),
    "no mask": Attending(),
    "causal": Attending(is_causal=True),
}
KEYS = {"keys that are no multiple": 6, "what is hidden of a few": 6, "a view of the input": 7}


@pytest.mark.parametrize("name", CASES)
def test_attention_is_one_operator(name: str) -> None:
    module = CASES[name].eval()
    queries = 7 if name == "a view of the input" else KEYS.get(name, 8)
    x = torch.randn(3, queries, 8)
    graph = rewritten(module, (x,), *PASSES)
    assert operators(graph)["attention"] == 1
    assert "scaled_dot_product_attention" not in operators(graph)
    assert_true_metadata(graph, x)


def test_with_a_dynamic_batch_masks_may_have_its_size() -> None:
    module = Attending(bias=lambda x: torch.ones(x.shape[0], 1, 1, 8).cumsum(-1)).eval()
    exported = export_dynamic(module, (torch.randn(4, 8, 8),))
    assert exported is not None
    graph = apply(functional_form(exported), PASSES)
    assert operators(graph)["attention"] == 1
    for rows in (2, 3):
        x = torch.randn(rows, 8, 8)
        torch.testing.assert_close(graph(x), module(x))


def test_a_constant_mask_costs_nothing_at_run_time() -> None:
    for name in ("per head", "keys that are no multiple", "what is hidden of a few"):
        graph = rewritten(CASES[name].eval(), (torch.randn(3, KEYS.get(name, 8), 8),), *PASSES)
        assert not operators(graph).keys() & {"constant_pad_nd", "where", "full", "unsqueeze"}
        assert graph.get_buffer("attention_bias_0").stride()[-2] % 4 == 0


def test_programs_of_one_model_share_the_bias() -> None:
    module, weights = CASES["what is hidden"].eval(), Weights()
    graphs = [rewritten(module, (torch.randn(rows, 8, 8),), *PASSES, weights=weights) for rows in (1, 2)]
    assert len({graph.get_buffer("attention_bias_0").data_ptr() for graph in graphs}) == 1


@pytest.mark.parametrize(
    "module",
    [
        Attending(torch.randn(8, 8), heads=4),
        Attending(torch.randn(8, 1)),
        Attending(torch.randn(8, 8), dropout_p=0.5),
    ],
    ids=["narrow heads", "one bias per query", "dropout"],
)
def test_what_the_kernel_does_not_compute_stays(module: nn.Module) -> None:
    graph = apply(functional_form(export_static(module.eval(), (torch.randn(3, 8, 8),))), PASSES)
    assert "attention" not in operators(graph)


class Heads(nn.Module):
    def __init__(self, mask: Tensor | None) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x, x, self.mask)


@pytest.mark.parametrize("keys", [128, 2048])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_without_a_mask_half_precision_has_kernels_of_pytorch_s_for_much_work(dtype: torch.dtype, keys: int) -> None:
    x = torch.randn(1, 2, keys, 16).to(dtype)
    for mask in (None, torch.zeros(keys, keys, dtype=dtype)):
        graph = apply(functional_form(export_static(Heads(mask), (x,))), ("attention",))
        small_or_slow = keys == 128 or mask is not None or dtype == torch.float32
        assert operators(graph)["attention"] == small_or_slow


def test_a_mask_of_another_dtype_stays() -> None:
    class Heads(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(x, x, x, mask)

    inputs = torch.randn(1, 2, 8, 8).half(), torch.randn(8, 8)
    assert "attention" not in operators(apply(functional_form(export_static(Heads(), inputs)), PASSES))


@pytest.mark.parametrize("columns", [6, 8])
def test_the_operator_against_the_formula(columns: int) -> None:
    query, key, val = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 4)
    bias = torch.randn(1, 3, 5, columns)
    bias[..., 6:] = float("nan")  # not looked at
    arguments = (query, key, val, bias, False, 0.25)
    out = attention(*arguments)
    expected = torch.softmax(query @ key.mT * 0.25 + bias[..., :6], -1) @ val
    torch.testing.assert_close(out, expected)
    assert out.transpose(1, 2).is_contiguous()
    torch.library.opcheck(attention, arguments, test_utils=("test_schema", "test_faketensor"))


def test_its_operations_are_counted() -> None:
    x = torch.randn(1, 2, 8, 4)
    with FlopCounterMode(display=False) as counter:
        attention(x, x, x, None, False, None)
    assert counter.get_total_flops() == 2 * 2 * 2 * 8 * 8 * 4


def test_queries_that_see_nothing_get_zeros() -> None:
    x, bias = torch.randn(1, 1, 3, 4), torch.zeros(1, 1, 3, 3)
    bias[..., 1, :] = -torch.inf
    out = attention(x, x, x, bias, False, None)
    assert out[..., 1, :].count_nonzero() == 0
    assert out.isfinite().all()
