"""depthwise against eager, and its operator against its parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from opara_server.engine.rewrites.depthwise_operator import depthwise
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
BOTH = ("fold_batch_norm", "depthwise")


def spread(size: Any = 3, padding: Any = None, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(6, 6, size, padding=size // 2 if padding is None else padding, groups=6, **options)


def point(channels: int = 6, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, 6, 1, **options)


class Uneven(nn.Module):
    """Padding that differs from side to side, as timm's."""

    def __init__(self, sides: Sequence[int], number: float = 0) -> None:
        super().__init__()
        self.sides, self.number = list(sides), number

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x, self.sides, value=self.number)


ONE: dict[str, list[nn.Module]] = {
    "alone": [spread()],
    "5 x 5": [spread(5, bias=False)],
    "strides": [spread(7, stride=2)],
    "sides": [spread((3, 5), padding=(0, 2), stride=(1, 2))],
    "dilation": [spread(dilation=2, padding="same")],
    "ReLU before": [nn.ReLU(), spread()],
    "ReLU after": [spread(), nn.ReLU()],
    "both": [nn.ReLU(), spread(), nn.ReLU()],
    "uneven padding": [nn.ReLU(), Uneven((1, 2, 1, 2)), spread(5, padding=0, stride=2)],
    "padding, then ReLU": [Uneven((0, 1, 2, 0)), nn.ReLU(), spread()],
    "padding twice": [Uneven((0, 1, 2, 0)), Uneven((1, 0, 1, 0)), spread()],
    "batch norm": [nn.ReLU(), spread(bias=False), nn.BatchNorm2d(6), nn.ReLU()],
}


@pytest.mark.parametrize("name", ONE)
def test_all_is_one_kernel(name: str) -> None:
    x = image(6)
    graph = rewritten(settled(nn.Sequential(*ONE[name])), (x,), *BOTH)
    assert operators(graph) == {"depthwise": 1}
    assert_true_metadata(graph, x)


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        ([nn.Conv2d(6, 12, 3, groups=6)], {"conv2d": 1}),
        ([nn.Conv2d(6, 6, 3, groups=3)], {"conv2d": 1}),
        ([spread(9)], {"conv2d": 1}),
        ([Uneven((1, 1, 1, 1), 2), spread()], {"pad": 1, "depthwise": 1}),
        ([Uneven((-1, 1, 1, 1)), spread()], {"pad": 1, "depthwise": 1}),
        ([spread(), nn.ReLU6()], {"depthwise": 1, "hardtanh": 1}),
    ],
    ids=["multiplied", "two by two", "many taps", "padding with another number", "cropping", "ReLU6"],
)
def test_what_the_kernel_does_not_compute_stays(layers: list[nn.Module], left: dict[str, int]) -> None:
    found = operators(rewritten(settled(nn.Sequential(*layers)), (image(6),), *BOTH))
    assert Counter({name.replace("relu6", "hardtanh"): count for name, count in found.items()}) == left


def test_a_model_that_is_not_channels_last_stays_as_it_is() -> None:
    module = nn.Sequential(spread(), nn.Flatten()).eval()
    assert "depthwise" not in operators(rewritten(module, (torch.randn(2, 6, 8, 8),), *BOTH))


class Cell(nn.Module):
    """Convolutions of one ReLU, which others may read, too, as in NASNet's cells."""

    def __init__(self, ahead: nn.Module, others: bool) -> None:
        super().__init__()
        self.ahead, self.others = ahead, others
        self.sides = nn.ModuleList([spread(), spread(5)])

    def forward(self, x: Tensor) -> Tensor:
        rest = functional.relu(self.ahead(x))
        total: Tensor = self.sides[0](rest) + self.sides[1](rest)
        return functional.max_pool2d(rest, 3, 1, 1) + total if self.others else total


@pytest.mark.parametrize("others", [False, True])
def test_every_reader_of_a_relu_applies_it(others: bool) -> None:
    found = operators(rewritten(settled(Cell(nn.AvgPool2d(3, 1, 1), others)), (image(6),), *BOTH))
    assert (found["depthwise"], found["relu"]) == (2, int(others))


def test_the_bias_of_a_convolution_moves_to_its_only_readers() -> None:
    x = image(6)
    graph = rewritten(settled(Cell(nn.Sequential(point(bias=False), nn.BatchNorm2d(6)), False)), (x,), *BOTH)
    assert operators(graph) == {"conv2d": 1, "depthwise": 2, "add": 1}
    (conv,) = (node for node in graph.graph.nodes if "conv2d" in str(node.target))
    assert conv.args[2] is None
    assert_true_metadata(graph, x)


def test_a_bias_that_others_read_stays() -> None:
    graph = rewritten(settled(Cell(point(), True)), (image(6),), *BOTH)
    (conv,) = (node for node in graph.graph.nodes if "conv2d" in str(node.target))
    assert conv.args[2] is not None
    assert operators(graph)["depthwise"] == 2


def test_an_image_in_another_layout_is_copied_once() -> None:
    class Stacked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x, x * 2]).mean(0)

    x, module = image(6), settled(Cell(Stacked(), False))
    module.to(memory_format=CHANNELS_LAST)  # type: ignore[call-overload]
    graph = rewritten(module, (x,), *BOTH)
    assert (operators(graph)["clone"], operators(graph)["depthwise"]) == (1, 2)
    assert_true_metadata(graph, x)


def test_one_after_another() -> None:
    x = image(6)
    relus = nn.Sequential(point(), nn.ReLU(), spread(), nn.ReLU(), spread(5), spread(), nn.ReLU(), point(), spread())
    graph = rewritten(settled(relus), (x,), *BOTH)
    assert operators(graph) == {"conv2d": 2, "depthwise": 4}
    assert_true_metadata(graph, x)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("layout", [CHANNELS_LAST, torch.contiguous_format])
def test_the_operator_against_its_parts(before: bool, layout: torch.memory_format) -> None:
    x, weight, bias, shift = torch.randn(2, 4, 7, 9), torch.randn(3, 5, 4), torch.randn(4), torch.randn(4)
    x = x.to(memory_format=layout)
    size = [4, 10]  # one row of zeros above and one below, three columns of them to the left and two to the right
    arguments = (x, weight, bias, shift, [2, 1], [1, 3], [1, 1], size, before, True)
    shifted = x + shift[:, None, None]
    padded = functional.pad(shifted.relu() if before else shifted, (3, 2, 1, 1))
    expected = functional.conv2d(padded, weight.permute(2, 0, 1)[:, None], bias, (2, 1), groups=4).relu()
    out = depthwise(*arguments)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=CHANNELS_LAST)
    torch.library.opcheck(depthwise, arguments, test_utils=("test_schema", "test_faketensor"))


def test_its_operations_are_counted() -> None:
    with FlopCounterMode(display=False) as counter:
        depthwise(image(4), torch.randn(3, 3, 4), None, None, [1, 1], [0, 0], [1, 1], [6, 6], False, False)
    assert counter.get_total_flops() == 2 * 2 * 4 * 6 * 6 * 9
