"""fold_constants, idle_masks, and weights that are computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from opara_server.engine.errors import LoweringError
from opara_server.engine.export import export_static
from opara_server.engine.rewrites import PASSES, Weights, apply
from opara_server.engine.rewrites import functional as functional_form
from opara_server.engine.tensors import static_inputs
from tests.engine.models import ZOO
from tests.engine.rewriting import TORCH_WARNS, assert_true_metadata, operators, rewritten

pytestmark = TORCH_WARNS


class Masked(nn.Module):
    """Attention whose mask is made of constants, as the transformers library does; ``hide`` masks a token for real."""

    def __init__(self, hide: bool = False, additive: bool = False) -> None:
        super().__init__()
        self.hide, self.additive = hide, additive
        self.project = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        keep = torch.arange(tokens)[None, :] < tokens - int(self.hide)
        mask = keep[:, None, None, :].expand(x.shape[0], 1, tokens, tokens)
        if self.additive:
            mask = torch.zeros(mask.shape).masked_fill(~mask, -1e9)
        heads = self.project(x).unflatten(-1, (2, 4)).transpose(1, 2)
        return functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)


@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_that_hides_nothing_is_dropped(additive: bool) -> None:
    graph = rewritten(Masked(additive=additive), (torch.randn(2, 5, 8),), "fold_constants", "idle_masks")
    (attention,) = (n for n in graph.graph.nodes if "attention" in str(n.target))
    assert attention.args[3] is None
    assert operators(graph).keys() <= {"linear", "view", "reshape", "transpose", "scaled_dot_product_attention"}


@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_that_hides_something_is_computed_once_and_kept(additive: bool) -> None:
    graph = rewritten(Masked(True, additive), (torch.randn(2, 5, 8),), "fold_constants", "idle_masks")
    assert not operators(graph).keys() & {"arange", "lt", "masked_fill", "zeros", "bitwise_not"}


class Bias(nn.Module):
    """A position bias from a table, as in T5, a sum with zeros, and chance."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 6)
        self.register_buffer("zeros", torch.zeros(1, 6))

    zeros: Tensor

    def forward(self, x: Tensor) -> Tensor:
        bias: Tensor = self.table(torch.arange(6) % 4).t()
        return x * 2 + bias + self.zeros + 0 * torch.rand(6)


def test_what_depends_on_weights_alone_is_computed_once() -> None:
    graph = rewritten(Bias(), (torch.randn(6, 6),), "fold_constants", "idle_masks")
    assert operators(graph) == {"mul": 2, "add": 2, "rand": 1, "t": 1}, "chance is not a constant, a view is free"
    assert "table.weight" not in dict(graph.named_parameters()), "nothing reads it any more"


class Scaled(nn.Module):
    """A sum of zeros and a multiple."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(2, 3))

    zeros: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.zeros, x.sin(), alpha=3)


def test_a_sum_with_zeros_that_scales_stays() -> None:
    assert operators(rewritten(Scaled(), (torch.randn(2, 3),), "idle_masks"))["add"] == 1


class Layout(nn.Module):
    """A constant of one value decides how the product with it lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ones", torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last))

    ones: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return (self.ones * 2 * x).relu()


def test_what_the_graph_says_of_results_is_what_they_are() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert_true_metadata(rewritten(Layout(), (x,), "fold_constants"), x)


class Counting(nn.Module):
    """Writes to its own buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    count: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x + self.count * 1


def test_a_weight_that_the_program_writes_to_is_no_constant() -> None:
    x = torch.zeros(2, 1)
    graph = apply(functional_form(export_static(Counting(), (x,))), ["fold_constants", "idle_masks"])
    assert [float(graph(x)[0]) for _ in range(3)] == [1, 2, 3]


def test_a_view_of_an_input_stays_a_copy_where_the_model_copies() -> None:
    class Copies(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.clone(), (x + 1).clone()

    x = torch.randn(3)
    graph = rewritten(Copies(), (x,))
    assert graph(x)[0].data_ptr() != x.data_ptr()
    assert operators(graph) == {"clone": 1, "add": 1}


def test_a_copy_of_a_view_of_an_input_is_from_before_the_input_is_written_to() -> None:
    class Before(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            flat, half = x.flatten().clone(), x.split(1)[0].clone()
            x.add_(1)
            return flat, half

    x = torch.randn(2, 3)
    graph = apply(functional_form(export_static(Before(), (x.clone(),))), [])
    torch.testing.assert_close(graph(x.clone()), Before()(x.clone()))


def test_programs_of_one_model_share_what_is_computed() -> None:
    module, weights = Bias(), Weights()
    one, two = (rewritten(module, (torch.randn(6, 6),), "fold_constants", weights=weights) for _ in range(2))
    shared = [{tensor.data_ptr() for name, tensor in graph.named_buffers() if "folded" in name} for graph in (one, two)]
    assert shared[0] == shared[1] != set()


def test_derived_tensors_are_told_apart_by_type_and_number() -> None:
    weights = Weights()
    x = torch.ones(2, dtype=torch.int64)
    made = [weights.derive(torch.mul, x, factor) for factor in (1, 1.0, True, 1)]
    assert made[0] is made[3]
    assert [tensor.dtype for tensor in made[:2]] == [torch.int64, torch.float32]


def test_the_module_stays_as_it_was_and_shares_its_weights() -> None:
    module = functional_form(export_static(Bias(), (torch.randn(6, 6),)))
    before = module.code
    changed = apply(module, ["fold_constants"])
    assert module.code == before != changed.code
    assert changed.get_buffer("zeros").data_ptr() == module.get_buffer("zeros").data_ptr()


def test_an_unknown_pass_is_named() -> None:
    with pytest.raises(KeyError, match="fold_everything"):
        apply(functional_form(export_static(Bias(), (torch.randn(6, 6),))), ["fold_everything"])


@pytest.mark.parametrize(
    "write", [lambda x: torch._foreach_add_([x, x], 1), lambda x: x.squeeze_(0)], ids=["list", "shape"]
)
def test_writes_that_pytorch_replaces_wrongly_are_refused(write: Callable[[Tensor], Any]) -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            write(x)
            return x + 1

    with pytest.raises(LoweringError, match="in place"):
        functional_form(export_static(Writes(), (torch.randn(1, 4),)))


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm")  # torch.export about any LSTM
@pytest.mark.parametrize("name", ZOO)
def test_every_pass_on_modules_of_every_kind(name: str) -> None:
    case = ZOO[name]
    inputs = static_inputs(case.inputs, 4, torch.device("cpu"), channels_last=False)
    module = case.build().eval()
    with torch.no_grad():
        graph = apply(functional_form(export_static(module, [t.clone() for t in inputs])), list(PASSES))
        found, expected = (pytree.tree_leaves(f(*[t.clone() for t in inputs])) for f in (graph, module))
    torch.testing.assert_close(
        [leaf for leaf in found if isinstance(leaf, Tensor)], [leaf for leaf in expected if isinstance(leaf, Tensor)]
    )
