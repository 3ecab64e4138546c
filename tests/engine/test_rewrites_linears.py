"""linear_epilogues, explicit_linears, merge_siblings and merge_embeddings against eager."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from opara_server.engine.rewrites.linear_operator import linear_activation
from tests.engine.rewriting import TORCH_WARNS, assert_true_metadata, operators, rewritten, settled

pytestmark = TORCH_WARNS


@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU()], ids=str)
@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_activation_are_one(act: nn.Module, shape: tuple[int, ...], bias: bool) -> None:
    module = settled(nn.Sequential(nn.Linear(8, 6, bias), act))
    assert operators(rewritten(module, (torch.randn(shape),), "linear_epilogues"))["_addmm_activation"] == 1


@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU()], ids=str)
@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8)], ids=str)
def test_it_writes_where_it_is_told(act: nn.Module, shape: tuple[int, ...]) -> None:
    module, x = settled(nn.Sequential(nn.Linear(8, 6), act)), torch.randn(shape)
    graph = rewritten(module, (x,), "linear_epilogues", "explicit_linears")
    found = operators(graph)
    assert (found["empty_permuted"], found["linear_activation"], found["_addmm_activation"]) == (1, 1, 0)
    assert_true_metadata(graph, x)


def test_a_layer_that_adds_something_else_than_its_bias_makes_its_result() -> None:
    class Scaled(nn.Module):
        def __init__(self, beta: float, alpha: float, rows: int) -> None:
            super().__init__()
            self.beta, self.alpha, self.rows = beta, alpha, rows

        def forward(self, x: Tensor) -> Tensor:
            added = x if self.rows else x[0]
            y: Tensor = torch.ops.aten._addmm_activation.default(added, x, x.t(), beta=self.beta, alpha=self.alpha)
            return y

    for module in (Scaled(2.0, 1.0, 0), Scaled(1.0, 2.0, 0), Scaled(1.0, 1.0, 1)):
        found = operators(rewritten(module, (torch.randn(4, 4),), "explicit_linears"))
        assert (found["_addmm_activation"], found["linear_activation"]) == (1, 0)


def test_the_operator_against_pytorch_s() -> None:
    x, weight, bias = torch.randn(5, 8), torch.randn(6, 8).t(), torch.randn(6)
    for gelu in (False, True):
        out = torch.empty(5, 6)
        linear_activation(x, weight, bias, gelu, out)
        torch.testing.assert_close(out, torch.ops.aten._addmm_activation(bias, x, weight, use_gelu=gelu))
        given = (x, weight, bias, gelu, out)
        torch.library.opcheck(linear_activation, given, test_utils=("test_schema", "test_faketensor"))
    with FlopCounterMode(display=False) as counter:
        linear_activation(x, weight, bias, True, torch.empty(5, 6))
    assert counter.get_total_flops() == 2 * 5 * 8 * 6


class Sum(nn.Module):
    """What comes between is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y.relu() + y


@pytest.mark.parametrize(
    "module",
    [Sum(), nn.Sequential(nn.Linear(8, 8), nn.SiLU()), nn.Sequential(nn.Linear(8, 8), nn.GELU("tanh"))],
    ids=["read twice", "another activation", "the GELU that this device does not fuse"],
)
def test_what_the_kernel_does_not_compute_stays(module: nn.Module) -> None:
    assert "_addmm_activation" not in operators(rewritten(settled(module), (torch.randn(5, 8),), "linear_epilogues"))


class Attention(nn.Module):
    """Query, key and value of one tensor; the key has no bias, and contiguous() is not idle once they are merged."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).view(2, 5, 2, 4).transpose(1, 2) for f in (self.query, self.key))
        v = self.value(x).contiguous().view(-1).view(2, 5, 2, 2).transpose(1, 2)
        return functional.scaled_dot_product_attention(q, k, v)


def test_linears_of_one_tensor_are_merged() -> None:
    x = torch.randn(2, 5, 8)
    graph = rewritten(settled(Attention()), (x,), "merge_linears")
    assert operators(graph)["linear"] == 1
    assert_true_metadata(graph, x)


class Outputs(nn.Module):
    """Layers that may not be merged: one is an output, one is of another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layers[0](x), torch.relu(self.layers[1](x)) + self.layers[2](x + 1)


def test_outputs_and_layers_of_other_tensors_stay() -> None:
    assert operators(rewritten(settled(Outputs()), (torch.randn(2, 8),), "merge_linears"))["linear"] == 3


def test_one_bias_for_all_columns_is_merged_too() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = (nn.Parameter(torch.randn(6, 8)) for _ in range(2))
            self.shift = nn.Parameter(torch.randn(()))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.one, self.shift) * functional.linear(x, self.other)

    assert operators(rewritten(Shifted(), (torch.randn(2, 8),), "merge_linears"))["linear"] == 1


class Tables(nn.Module):
    """A table for each column of the ids, in the way of recommenders."""

    def __init__(
        self, join: Callable[[list[Tensor]], Tensor], dims: Sequence[int] = (3, 3, 3), columns: int = 3
    ) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(5 + i, dim) for i, dim in enumerate(dims))
        self.join, self.columns = join, columns

    def forward(self, ids: Tensor) -> Tensor:
        columns = ids.unbind(1) if self.columns == 3 else [ids[:, 2], ids[:, 0], ids[:, -1]]
        return self.join([table(column) for table, column in zip(self.tables, columns, strict=True)]) * 2


IDS = torch.tensor([[0, 5, 6], [4, 0, 0], [3, 3, 3], [4, 5, 4]])


@pytest.mark.parametrize(
    ("module", "left"),
    [
        (Tables(lambda parts: torch.stack(parts, 1)), {"add", "embedding", "mul"}),
        (Tables(lambda parts: torch.cat(parts, 1)), {"add", "embedding", "mul", "reshape"}),
        (Tables(lambda p: torch.cat([p[0] + 1, *p], -1)), {"add", "cat", "embedding", "mul", "reshape", "select"}),
        (Tables(lambda parts: torch.stack(parts, 2)), {"add", "embedding", "mul", "select", "stack"}),
        (Tables(lambda parts: torch.stack(parts[::-1], 1)), {"add", "embedding", "mul", "select", "stack"}),
        (Tables(lambda parts: torch.cat(parts, 0)), {"add", "cat", "embedding", "mul", "select"}),
        (Tables(lambda p: p[0] + p[1] + p[2], columns=2), {"add", "embedding", "index_select", "mul", "select"}),
    ],
    ids=["stacked", "joined", "joined with more", "stacked elsewhere", "in another order", "rows", "some columns"],
)  # fmt: skip
def test_look_ups_of_one_tensor_are_merged(module: nn.Module, left: set[str]) -> None:
    graph = rewritten(settled(module), (IDS % 5,), "merge_embeddings")
    assert operators(graph)["embedding"] == 1
    assert operators(graph).keys() == left


def test_results_of_the_model_are_tensors_of_their_own() -> None:
    class Results(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(5, 3) for _ in range(2))

        def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
            parts = [table(column) for table, column in zip(self.tables, ids.unbind(1), strict=True)]
            return torch.stack(parts, 1), torch.cat(parts, 1)

    stacked, joined = rewritten(Results(), (IDS[:, :2] % 5,), "merge_embeddings")(IDS[:, :2] % 5)
    assert stacked.untyped_storage().data_ptr() != joined.untyped_storage().data_ptr()


def test_tables_of_other_widths_are_merged_apart() -> None:
    module = Tables(lambda parts: torch.cat(parts, 1), (3, 2, 3))
    assert operators(rewritten(settled(module), (IDS,), "merge_embeddings"))["embedding"] == 2


def test_row_numbers_must_fit_the_ids() -> None:
    module = Tables(lambda parts: torch.cat(parts, 1))
    module.tables[0] = nn.Embedding(120, 3)
    graph = rewritten(settled(module), (IDS.int(),), "merge_embeddings")
    assert graph.get_buffer("table_starts_0").tolist() == [0, 120, 126]
    assert graph.get_buffer("table_starts_0").dtype == torch.int32
