"""fold_batch_norm and conv_epilogues against eager."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from opara_server.engine.export import export_static
from opara_server.engine.rewrites import Weights, apply
from opara_server.engine.rewrites import functional as functional_form
from opara_server.engine.rewrites.operators import convolution_relu
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

BOTH = ("fold_batch_norm", "conv_epilogues")


def chain(**options: object) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 6, 3, **options), nn.BatchNorm2d(6), nn.ReLU(inplace=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"stride": 2, "padding": (1, 0)},
        {"padding": "same", "dilation": 2},
        {"padding": "valid"},
        {"groups": 2},
    ],
    ids=str,
)
def test_batch_norm_is_folded(options: dict[str, object]) -> None:
    graph = rewritten(settled(chain(**options)), (image(4),), "fold_batch_norm")
    assert operators(graph) == {"conv2d": 1, "relu": 1}
    assert {"0.weight", "1.weight"}.isdisjoint(dict(graph.named_parameters()))
    assert all(w.is_contiguous(memory_format=CHANNELS_LAST) for w in graph.buffers() if w.dim() == 4)


@pytest.mark.parametrize(
    ("conv", "x"),
    [(nn.Conv1d(4, 6, 3), torch.randn(2, 4, 9)), (nn.Conv2d(4, 6, 3), torch.randn(2, 4, 9, 9))],
    ids=["1d", "no affine"],
)
def test_batch_norm_of_other_kinds(conv: nn.Module, x: Tensor) -> None:
    norm: nn.Module = nn.BatchNorm1d(6) if isinstance(conv, nn.Conv1d) else nn.BatchNorm2d(6, affine=False)
    assert operators(rewritten(settled(nn.Sequential(conv, norm)), (x,), "fold_batch_norm")).total() == 1


class JoinedFirst(nn.Module):
    """A batch norm of what a cat joins, as in NASNet's cells."""

    def __init__(self, *sides: nn.Module) -> None:
        super().__init__()
        self.sides, self.norm = nn.ModuleList(sides), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(torch.cat([side(x) for side in self.sides], 1))
        return y


def test_batch_norm_of_joined_convolutions_is_folded_into_each() -> None:
    module = settled(JoinedFirst(nn.Conv2d(4, 5, 1), nn.Conv2d(4, 3, 3, padding=1, bias=False)))
    assert operators(rewritten(module, (image(4),), "fold_batch_norm")) == {"conv2d": 2, "cat": 1}


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return functional.relu(self.norm(y)) + y


@pytest.mark.parametrize(
    "module",
    [
        ReadTwice(),
        nn.Sequential(nn.ConvTranspose2d(3, 4, 3, groups=1), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)),
        JoinedFirst(nn.Conv2d(3, 5, 1), nn.Identity()),
    ],
    ids=["read twice", "transposed", "before", "joined with something else"],
)
def test_batch_norm_stays_where_folding_would_change_something(module: nn.Module) -> None:
    graph = rewritten(settled(module), (image(),), *BOTH)
    assert any("batch_norm" in name for name in operators(graph))


def test_batch_norm_of_an_image_that_is_no_batch_stays() -> None:
    """It takes the rows of the result for its channels; here there are as many of both."""
    module = settled(nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)))
    assert operators(rewritten(module, (torch.randn(3, 6),), "fold_batch_norm"))["conv1d"] == 1


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"stride": 2, "padding": (1, 0)}, {"dilation": 2}], ids=str)
def test_convolution_bias_and_relu_are_one(options: dict[str, object]) -> None:
    assert operators(rewritten(settled(chain(**options)), (image(4),), *BOTH)) == {"convolution_relu": 1}
    alone = nn.Sequential(nn.Conv2d(4, 6, 3, **options), nn.ReLU())  # type: ignore[arg-type]
    assert operators(rewritten(settled(alone), (image(4),), "conv_epilogues")) == {"convolution_relu": 1}


class Residual(nn.Module):
    """relu(conv(x) + side(x))."""

    def __init__(
        self, side: nn.Module, join: Callable[[Tensor, Tensor], Tensor] = torch.add, tail: bool = False
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        )
        self.side, self.join, self.tail = side, join, tail

    def forward(self, x: Tensor) -> Tensor:
        joined = self.join(self.side(x), self.body(x))
        return functional.relu(joined) + joined if self.tail else functional.relu(joined)


def down() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


def test_a_residual_is_added_by_the_same_kernel() -> None:
    assert operators(rewritten(settled(Residual(nn.Identity())), (image(4),), *BOTH)) == {"convolution_relu": 2}


def test_a_residual_that_is_late_is_not_waited_for() -> None:
    side = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(2)))
    found = operators(rewritten(settled(Residual(side)), (image(4),), *BOTH))
    assert found == {"convolution_relu": 1, "conv2d": 3, "add": 1, "relu": 1}


def test_a_residual_convolution_hands_its_bias_over() -> None:
    graph = rewritten(settled(Residual(down())), (image(4),), *BOTH)
    assert operators(graph) == {"convolution_relu": 2, "conv2d": 1}
    (side,) = (node for node in graph.graph.nodes if "conv2d" in str(node.target))
    assert side.args[2] is None


@pytest.mark.parametrize(
    "module",
    [
        Residual(nn.Identity(), tail=True),
        Residual(nn.Identity(), lambda a, b: torch.add(a, b, alpha=2)),
        Residual(nn.AdaptiveAvgPool2d(1)),
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU6()),
        nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.ReLU()),
    ],
    ids=["read twice", "scaled", "broadcast", "depthwise", "relu6", "transposed"],
)
def test_what_the_kernel_does_not_compute_stays(module: nn.Module) -> None:
    assert operators(rewritten(settled(module), (image(4),), *BOTH))["convolution_relu"] == isinstance(module, Residual)


def test_a_sum_of_one_convolution_with_itself_stays() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return functional.relu(y + y)

    rewritten(settled(Doubled()), (image(4),), *BOTH)


def test_a_model_that_is_not_channels_last_stays_as_it_is() -> None:
    module = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten()).eval()
    graph = rewritten(module, (torch.randn(2, 4, 8, 8),), "conv_epilogues")
    assert "convolution_relu" not in operators(graph)


class Inception(nn.Module):
    """Branches of convolutions and pooling that a cat joins, whose result a convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = nn.ModuleList(chain(padding="same") for _ in range(2))
        self.pool = nn.MaxPool2d(3, 1, padding=1)
        self.last = nn.Sequential(nn.Conv2d(16, 5, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.cat([*(side(x) for side in self.sides), self.pool(x)], 1))
        return y.flatten(1)


def test_what_an_export_says_wrongly_of_layouts_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.11 on GPUs: convolutions on channels_last images are told to be contiguous."""
    module, x = settled(Inception()), image(4)
    with monkeypatch.context() as patched:
        patched.setattr("torch._C._conv_determine_backend_memory_format", lambda *_: torch.contiguous_format)
        FakeTensorMode.cache_clear()
        exported = functional_form(export_static(module, (x,)))
    told = [node.meta["val"] for node in exported.graph.nodes if "conv" in str(node.target)]
    assert not any(tensor.is_contiguous(memory_format=CHANNELS_LAST) for tensor in told)
    assert operators(apply(exported, BOTH))["convolution_relu"] == 3


def test_relus_that_a_cat_reads_become_part_of_convolutions_too() -> None:
    assert operators(rewritten(settled(Inception()), (image(4),), *BOTH))["convolution_relu"] == 3


def test_every_operand_of_the_kernel_is_channels_last() -> None:
    graph = rewritten(settled(Inception()), (image(4),), *BOTH)
    for node in graph.graph.nodes:
        if "convolution_relu" in str(node.target):
            tensors = [node.args[0].meta["val"], node.args[1].meta["val"], node.meta["val"]]
            assert all(tensor.is_contiguous(memory_format=CHANNELS_LAST) for tensor in tensors)


def test_what_the_graph_says_of_results_is_what_they_are() -> None:
    module, x = settled(Inception()), image(4)
    assert_true_metadata(rewritten(module, (x,), *BOTH), x)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layout", [CHANNELS_LAST, torch.contiguous_format])
def test_the_operator_against_its_parts(residual: bool, layout: torch.memory_format) -> None:
    x, weight, bias = torch.randn(2, 4, 8, 8).to(memory_format=layout), torch.randn(6, 4, 3, 3), torch.randn(6)
    z = torch.randn(2, 6, 6, 6).to(memory_format=layout) if residual else None
    arguments = (x, weight, bias, z, [1, 1], [0, 0], [1, 1], 1)
    expected = functional.relu(functional.conv2d(x, weight, bias) + (0 if z is None else z))
    out = convolution_relu(*arguments)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=CHANNELS_LAST)
    torch.library.opcheck(convolution_relu, arguments, test_utils=("test_schema", "test_faketensor"))


def test_the_operator_counts_as_many_operations_as_a_convolution() -> None:
    x, weight, bias = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3), torch.randn(6)
    with FlopCounterMode(display=False) as fused:
        convolution_relu(x, weight, bias, None, [1, 1], [0, 0], [1, 1], 1)
    with FlopCounterMode(display=False) as plain:
        functional.conv2d(x, weight, bias)
    assert fused.get_total_flops() == plain.get_total_flops() > 0


def test_buckets_of_a_model_share_their_new_weights() -> None:
    module, weights = settled(Residual(down())), Weights()
    graphs = [rewritten(module, (image(4, rows=rows),), *BOTH, weights=weights) for rows in (1, 2)]
    one, two = ({tensor.data_ptr() for tensor in graph.buffers()} for graph in graphs)
    assert one == two
    assert len(one) == 5
