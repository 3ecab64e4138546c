"""pad_channels, fold_padding and deduplicate against eager."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from opara_server.engine.rewrites.convolutions import convolution
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
MULTIPLE = 4  # of float32, 16 bytes


def counts(graph: GraphModule) -> list[tuple[int, int]]:
    """Channels in and out of every convolution."""
    found = [convolution(node) for node in graph.graph.nodes]
    return [(conv.x.meta["val"].shape[1], conv.node.meta["val"].shape[1]) for conv in found if conv is not None]


def aligned(graph: GraphModule) -> bool:
    return all(c % MULTIPLE == 0 for pair in counts(graph) for c in pair)


class Between(nn.Module):
    """Something between two convolutions of odd channel counts."""

    def __init__(self, between: Callable[[Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 6, 3, padding=1, bias=bias), nn.Conv2d(6, 4, 1, bias=bias)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.between(self.first(x)))
        return y + 1


PER_CHANNEL: list[Callable[[Tensor], Tensor]] = [
    functional.relu,
    functional.relu6,
    torch.sigmoid,
    functional.silu,
    nn.MaxPool2d(3, 2, padding=1),
    nn.AvgPool2d(2),
    nn.AdaptiveAvgPool2d(1),
    nn.Upsample(scale_factor=2),
    nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.ZeroPad2d((0, 1, 0, 1)),
    lambda y: y[:, :, 1:, :-1],
    lambda y: y * y.mean((2, 3), keepdim=True).sigmoid(),
    lambda y: y * 2 + y.relu() - 1,
    lambda y: y * torch.arange(2.0)[:, None, None, None],
]


class Side(nn.Module):
    """Several modules of one input."""

    def __init__(self, parts: Sequence[Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Between(part) for part in parts)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [part(x) for part in self.parts]


def test_channels_are_carried_along() -> None:
    x = image(4)
    graph = rewritten(settled(Side(PER_CHANNEL)), (x,), "pad_channels")
    assert counts(graph) == [(4, 8), (8, 4)] * len(PER_CHANNEL)
    assert operators(graph) == operators(rewritten(settled(Side(PER_CHANNEL)), (x,))), "nothing takes a part"
    assert_true_metadata(graph, x)


MIXING: list[Callable[[Tensor], Tensor]] = [
    lambda y: y.softmax(1),
    lambda y: y + y.mean(1, keepdim=True),
    lambda y: y.flip(1),
    lambda y: functional.layer_norm(y, y.shape[1:]),
    lambda y: y + torch.arange(6.0)[:, None, None],
    lambda y: functional.pad(y, (0, 0, 0, 0, 1, 1))[:, 1:-1],
    lambda y: y / (y + 10),
    lambda y: torch.cat([y, y], 0)[:2],
    lambda y: functional.max_pool2d(functional.pad(y, (0, 1, 0, 1), value=-inf), 2),
]


def test_what_mixes_channels_gets_the_models_own() -> None:
    x = image(4)
    graph = rewritten(settled(Side(MIXING)), (x,), "pad_channels")
    assert counts(graph)[::2] == [(4, 8)] * len(MIXING)
    assert_true_metadata(graph, x)


def test_a_cat_with_a_tensor_of_nothing_gets_the_models_own() -> None:
    module = Between(lambda y: torch.cat([y, y.new_empty(0)], 1))
    module.last = nn.Conv2d(6, 4, 3)
    assert counts(rewritten(settled(module), (image(4),), "pad_channels")) == [(4, 8), (8, 4)]


class Joined(nn.Module):
    """A cat of odd and even channel counts, read by a convolution, by a pooling before one, and by something else."""

    def __init__(self, other: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.sides = nn.ModuleList(nn.Conv2d(4, width, 1, bias=False) for width in (3, 4, 5))
        self.last = nn.ModuleList(nn.Conv2d(16, 4, 1) for _ in range(2))
        self.other = other

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = torch.cat([*(side(x) for side in self.sides), x], 1)
        a, b = self.last[0](y.relu()), self.last[1](functional.avg_pool2d(y, 3, 1, 1))
        return a + b, self.other(y)


@pytest.mark.parametrize(
    "other", [lambda y: y.flatten(1), lambda y: y, lambda y: y.relu().sum(1)], ids=["flattened", "result", "gather"]
)
def test_a_cat_of_padded_tensors_has_gaps(other: Callable[[Tensor], Tensor]) -> None:
    x = image(4)
    graph = rewritten(settled(Joined(other)), (x,), "pad_channels")
    assert counts(graph) == [(4, 4), (4, 4), (4, 8), (20, 4), (20, 4)]
    assert_true_metadata(graph, x)
    assert all(out.is_contiguous() or out.is_contiguous(memory_format=CHANNELS_LAST) for out in graph(x))


class Depthwise(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, groups=groups), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 4, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y.relu()


def test_depthwise_convolutions_are_padded() -> None:
    graph = rewritten(settled(Depthwise(6)), (image(4),), "fold_batch_norm", "pad_channels", "conv_epilogues")
    assert counts(graph) == [(4, 8), (8, 8)]
    assert operators(graph) == {"conv2d": 2, "hardtanh": 1, "convolution_relu": 1}


def test_other_grouped_convolutions_are_not() -> None:
    """What they make is padded for the next one."""
    assert counts(rewritten(settled(Depthwise(2)), (image(4),), "pad_channels")) == [(4, 8), (6, 6), (8, 4)]


class Both(nn.Module):
    """Two convolutions of one image."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.one(x).relu() * self.other(x).sigmoid())
        return y.relu()


def test_an_image_is_padded_once_by_a_kernel_of_its_own() -> None:
    x = image(3)
    graph = rewritten(settled(Both()), (x,), "pad_channels", "conv_epilogues")
    assert operators(graph) == {
        "constant_pad_nd": 1,
        "conv2d": 1,
        "sigmoid": 1,
        "mul": 1,
        "convolution_relu": 2,
    }
    assert counts(graph) == [(4, 8)]
    assert_true_metadata(graph, x)


def test_results_and_other_layouts_stay() -> None:
    last = settled(nn.Sequential(nn.Conv2d(4, 6, 1)))
    assert counts(rewritten(last, (image(4),), "pad_channels")) == [(4, 6)]
    plain = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU()).eval()
    assert counts(rewritten(plain, (torch.randn(2, 4, 8, 8),), "pad_channels")) == [(4, 6), (6, 4)]


def test_half_precision_wants_twice_as_many() -> None:
    module, x = settled(Between(functional.relu)).bfloat16(), image(4, dtype=torch.bfloat16)
    assert counts(rewritten(module, (x,), "pad_channels", tolerance=2e-2)) == [(8, 8), (8, 8)]


class Padded(nn.Module):
    """A pad that a convolution and a max pooling read."""

    def __init__(self, pads: tuple[int, ...], value: float) -> None:
        super().__init__()
        self.conv, self.pads, self.value = nn.Conv2d(4, 4, 3, padding=(1, 0)), pads, value

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.pad(x, self.pads, value=self.value)
        convolved: Tensor = self.conv(x.clamp(-9, 9) if self.value == -inf else x)
        return convolved, functional.max_pool2d(x, 3, 2)


@pytest.mark.parametrize(
    ("pads", "value", "left"),
    [((1, 1, 2, 2), 0, 1), ((1, 1, 1, 1), -inf, 1), ((0, 1, 0, 1), 0, 1), ((2, 2, 2, 2), -inf, 1), ((1, 1), 1, 1)],
    ids=str,
)
def test_padding_goes_into_what_reads_it(pads: tuple[int, ...], value: float, left: int) -> None:
    graph = rewritten(settled(Padded(pads, value)), (image(4),), "fold_padding")
    assert operators(graph)["pad"] == left


def test_a_pooling_whose_last_window_begins_in_the_padding_stays() -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            padded = functional.pad(x, (1, 1, 1, 1), value=-inf)
            return functional.max_pool2d(padded, 2, 3, ceil_mode=True).clamp(min=-9)

    assert operators(rewritten(Pooled(), (image(4, 5),), "fold_padding"))["pad"] == 1


def test_a_pad_that_only_a_convolution_reads_is_gone() -> None:
    module = settled(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3), nn.ConstantPad2d(1, -inf), nn.MaxPool2d(3)))
    assert operators(rewritten(module, (image(4),), "fold_padding")) == {"conv2d": 1, "max_pool2d": 1}


class Twice(nn.Module):
    """The same calls, of the same and of other operands; chance; and two results that are the same."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        chance = (torch.rand_like(x) - torch.rand_like(x)).sign() ** 2
        top, end = x.relu().chunk(2, 1)[0], x.relu().chunk(2, 1)[1]
        return top + end * x[:, :2].relu(), (x * 1 + x * 1.0) * chance, x + 1, x + 1


def test_the_same_call_is_made_once() -> None:
    x = torch.randn(2, 4)
    graph = rewritten(Twice(), (x,), "deduplicate")
    found = operators(graph)
    assert (found["relu"], found["split"], found["mul"]) == (2, 1, 4)
    assert sum(found[name] for name in found if name.startswith("rand")) == 2
    assert graph(x)[2].data_ptr() != graph(x)[3].data_ptr()
