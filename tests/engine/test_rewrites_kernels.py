"""explicit_kernels against eager, and its operators against those that make their results themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from opara_server.engine.export import export_static
from opara_server.engine.rewrites import TRITON_CALLS, apply
from opara_server.engine.rewrites import functional as functional_form
from opara_server.engine.rewrites.attention_operator import ATTENTION_OUT, attention, attention_out
from opara_server.engine.rewrites.attention_tile import MOST_KEYS
from opara_server.engine.rewrites.depthwise_operator import DEPTHWISE_OUT, depthwise, depthwise_out
from opara_server.engine.rewrites.edit import arguments, calls, value
from tests.engine.rewriting import (
    CHANNELS_LAST,
    TORCH_WARNS,
    assert_true_metadata,
    image,
    operators,
    rewritten,
    settled,
)

pytestmark = TORCH_WARNS
PASSES = ("fold_constants", "attention", "depthwise", "explicit_kernels")


class Heads(nn.Module):
    """Attention of four heads of 8, over ``x`` [B, K, 32]; a user of its result in the order of memory, and another."""

    bias: Tensor | None

    def __init__(self, bias: Tensor | None = None) -> None:
        super().__init__()
        self.project = nn.Linear(32, 96)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        query, key, val = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.project(x).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(query, key, val, self.bias)
        return mixed.transpose(1, 2).flatten(2) + 1, mixed.softmax(2)


class Branches(nn.Module):
    """Two depthwise convolutions of the same shapes, and what is made of both."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1, groups=6) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        one, other = (functional.relu(side(x)) for side in self.sides)
        total: Tensor = functional.max_pool2d(one, 3, 1, 1) - other
        return total


@pytest.mark.parametrize("bias", [None, torch.randn(1, 4, 8, 8)], ids=["plain", "with a bias"])
def test_attention_writes_where_it_is_told(bias: Tensor | None) -> None:
    x = torch.randn(3, 8, 32)
    graph = rewritten(Heads(bias).eval(), (x,), *PASSES)
    found = operators(graph)
    assert (found["empty_permuted"], found["attention_out"], found["attention"]) == (1, 1, 0)
    assert_true_metadata(graph, x)


def test_so_do_depthwise_convolutions_each_to_memory_of_its_own() -> None:
    graph = rewritten(settled(Branches()), (image(6),), *PASSES)
    assert operators(graph) == {"empty_permuted": 2, "depthwise_out": 2, "max_pool2d": 1, "sub": 1}
    assert_true_metadata(graph, image(6))


def test_attention_by_pytorch_s_kernels_makes_its_result() -> None:
    x = torch.randn(1, MOST_KEYS + 8, 32)
    found = operators(rewritten(Heads(torch.randn(1, x.shape[1])).eval(), (x,), *PASSES))
    assert (found["attention"], found["attention_out"]) == (1, 0)


def test_what_a_kernel_would_copy_is_copied_by_a_call_of_its_own() -> None:
    """Layouts that other passes may leave behind."""

    class Both(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            taps, ones = torch.ones(3, 3, 4), [1, 1]
            key = x.transpose(2, 3).contiguous().transpose(2, 3)
            spread = depthwise(x, taps, None, None, ones, ones, ones, [8, 8], False, False)
            return attention(x, key, key * 2, None, False, None), spread

    x = torch.randn(2, 4, 8, 8)
    graph = apply(functional_form(export_static(Both(), (x,))), ("explicit_kernels",))
    found = operators(graph)
    assert (found["attention_out"], found["depthwise_out"], found["attention"], found["depthwise"]) == (1, 1, 0, 0)
    (spread,) = (arguments(node) for node in calls(graph, DEPTHWISE_OUT))
    assert value(spread["x"]).is_contiguous(memory_format=CHANNELS_LAST)
    (heads,) = (arguments(node) for node in calls(graph, ATTENTION_OUT))
    assert heads["query"].op == "placeholder"
    assert value(heads["key"]).stride(-1) == value(heads["value"]).stride(-1) == 1
    for out, expected in zip(graph(x), Both()(x), strict=True):
        torch.testing.assert_close(out, expected)


def test_every_such_operator_has_its_launch() -> None:
    assert set(TRITON_CALLS) == {ATTENTION_OUT, DEPTHWISE_OUT}


def test_the_operators_against_those_with_results() -> None:
    x = torch.randn(2, 3, 8, 16)
    given = (x, x + 1, x * 2, torch.randn(1, 3, 8, 8), False, 0.5)
    out = torch.empty(2, 8, 3, 16).transpose(1, 2)
    attention_out(*given, out)
    torch.testing.assert_close(out, attention(*given))
    torch.library.opcheck(attention_out, (*given, out), test_utils=("test_schema", "test_faketensor"))
    layer = (image(4), torch.randn(3, 3, 4), torch.randn(4), None, [2, 2], [1, 1], [1, 1], [4, 4], True, False)
    out = torch.empty(2, 4, 4, 4).to(memory_format=CHANNELS_LAST)
    depthwise_out(*layer, out)
    torch.testing.assert_close(out, depthwise(*layer))
    torch.library.opcheck(depthwise_out, (*layer, out), test_utils=("test_schema", "test_faketensor"))
