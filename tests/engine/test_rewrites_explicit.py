"""explicit_convolutions against eager."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from opara_server.engine.export import export_static
from opara_server.engine.lower_aten import lower
from opara_server.engine.rewrites import Weights, apply, explicit_convolutions, functional
from opara_server.engine.rewrites.convolution_layer import Form, Layer, form
from opara_server.engine.rewrites.convolution_operator import CONVOLUTION, convolution
from opara_server.engine.rewrites.convolution_plans import Choice
from opara_server.engine.rewrites.explicit_convolutions import COMPANY
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

ALL = ("fold_batch_norm", "conv_epilogues", "explicit_convolutions")


def layer(inputs: int, outputs: int, taps: int = 1, relu: bool = True) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, taps, padding=taps // 2)
    return nn.Sequential(conv, nn.ReLU()) if relu else conv


class Joined(nn.Module):
    """What sides make of one tensor, concatenated; and a layer that reads it."""

    def __init__(self, *sides: nn.Module, dim: int = 1, reader: nn.Module | None = None) -> None:
        super().__init__()
        self.sides, self.dim, self.reader = nn.ModuleList(sides), dim, reader or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.reader(torch.cat([side(x) for side in self.sides], self.dim))
        return y


def test_every_convolution_writes_where_it_is_told() -> None:
    module = settled(nn.Sequential(layer(4, 8, 3), layer(8, 6, relu=False), nn.BatchNorm2d(6), nn.MaxPool2d(2)))
    graph = rewritten(module, (image(4),), *ALL)
    assert operators(graph) == {"empty_permuted": 2, "convolution": 2, "max_pool2d": 1}
    assert_true_metadata(graph, image(4))


def test_a_residual_goes_along() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = layer(4, 4, 3), layer(4, 4, 3, relu=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.second(self.first(x)) + x)

    graph = rewritten(settled(Residual()), (image(4),), *ALL)
    assert operators(graph) == {"empty_permuted": 2, "convolution": 2}


def test_a_concatenation_of_convolutions_is_where_they_write() -> None:
    module = settled(Joined(layer(4, 4), layer(4, 8, 3, relu=False), layer(4, 12), reader=layer(24, 4)))
    graph = rewritten(module, (image(4),), *ALL)
    assert operators(graph) == {"empty_permuted": 2, "slice": 3, "convolution": 4}
    assert_true_metadata(graph, image(4))


def test_concatenations_of_concatenations_are_one_and_a_result_of_the_model_too() -> None:
    module = settled(Joined(layer(4, 4), Joined(layer(4, 4), layer(4, 4, 3)), Joined(layer(4, 8))))
    graph = rewritten(module, (image(4),), *ALL)
    assert operators(graph) == {"empty_permuted": 1, "slice": 4, "convolution": 4}


class JoinedWithItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.side = layer(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.side(x)
        return torch.cat([y, y], 1)


def test_a_convolution_that_is_joined_with_itself_writes_twice() -> None:
    graph = rewritten(settled(JoinedWithItself()), (image(4),), *ALL)
    assert operators(graph) == {"empty_permuted": 1, "slice": 2, "convolution": 2}


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = layer(4, 4), layer(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return torch.cat([y, self.second(x)], 1) + torch.cat([y, y], 1)


@pytest.mark.parametrize(
    ("module", "kept"),
    [
        (Joined(layer(4, 4), nn.MaxPool2d(3, 1, 1)), 1),
        (Joined(layer(4, 4), layer(4, 3), layer(4, 5)), 1),
        (Joined(layer(4, 6), layer(4, 4)), 1),
        (Joined(layer(4, 4), layer(4, 4), dim=2), 1),
        (ReadTwice(), 2),
    ],
    ids=["a pooling", "channels not aligned", "a first part that is not", "another dimension", "a part read twice"],
)
def test_other_concatenations_stay(module: nn.Module, kept: int) -> None:
    found = operators(rewritten(settled(module), (image(4),), *ALL))
    assert found["cat"] == kept
    assert found["convolution"] == sum(isinstance(part, nn.Conv2d) for part in module.modules())


@pytest.mark.parametrize(
    ("slower", "joined"),
    [({}, True), ({1: 4.0}, True), ({3: 1.5}, True), ({3: 4.0}, False), ({1: 9.0}, False), ({3: None}, False)],
    ids=str,
)
def test_convolutions_are_joined_where_the_last_of_them_is_there_sooner(
    monkeypatch: pytest.MonkeyPatch, slower: dict[int, float | None], joined: bool
) -> None:
    """``slower``: by its taps, by how many µs a convolution takes longer for its result to be among others' channels;
    None where it cannot be. The branch of 3 × 3 takes 5 µs longer than the other."""

    def told(layer: Layer, *, compiled: bool, tf32: bool, together: int) -> Choice | None:
        more = slower.get(layer.weight.shape[2], 0.0) if layer.sparse else 0.0
        return None if more is None else Choice("", 5.0 + more)

    monkeypatch.setattr(explicit_convolutions, "fastest", told)
    module = settled(Joined(layer(4, 4), nn.Sequential(layer(4, 16), layer(16, 8, 3))))
    found = operators(rewritten(module, (image(4),), *ALL))
    assert (found["convolution"], found["cat"]) == (3, 0 if joined else 1)


@pytest.mark.parametrize(
    ("name", "together"), [("explicit_convolutions", 1), ("convolutions_in_company", COMPANY)], ids=str
)
def test_plans_are_the_fastest_alone_or_in_company(monkeypatch: pytest.MonkeyPatch, name: str, together: int) -> None:
    """Of joined convolutions, of those that are not, and of those whose times decide on it."""
    asked: set[int] = set()

    def told(layer: Layer, *, compiled: bool, tf32: bool, together: int) -> Choice:
        asked.add(together)
        return Choice(f"fastest of {together}", 5.0)

    monkeypatch.setattr(explicit_convolutions, "fastest", told)
    module = settled(nn.Sequential(Joined(layer(4, 4), nn.Sequential(layer(4, 16), layer(16, 8, 3))), layer(12, 4)))
    graph = rewritten(module, (image(4),), *ALL[:-1], name)
    plans = [node.args[-2] for node in graph.graph.nodes if node.target is CONVOLUTION]
    assert plans == [f"fastest of {together}"] * 4
    assert asked == {together}


@pytest.mark.parametrize(("rows", "side"), [(1, 1), (2, 1), (1, 4)])
def test_plans_are_for_what_convolutions_are_told_to_write(
    monkeypatch: pytest.MonkeyPatch, rows: int, side: int
) -> None:
    """Also where strides say nothing: of images of one pixel, or alone in their batch."""

    def told(layer: Layer, **_: bool) -> Choice:
        return Choice(str(layer.out), 5.0)

    monkeypatch.setattr(explicit_convolutions, "fastest", told)
    graph = rewritten(settled(Joined(layer(4, 4), layer(4, 8))), (image(4, side, rows),), *ALL)
    told_to = [node.args[-2:] for node in graph.graph.nodes if node.target is CONVOLUTION]
    assert [plan for plan, _ in told_to] == [str(form(out.meta["val"])) for _, out in told_to] != []


class Late(nn.Module):
    """A residual that does not lie in memory as the convolution's result."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + residual)


def test_a_residual_in_another_layout_is_left_to_the_operator_that_copies_it() -> None:
    inputs = image(4), torch.randn(2, 4, 8, 8)
    assert operators(rewritten(settled(Late()), inputs, *ALL)) == {"convolution_relu": 1}
    assert operators(rewritten(settled(Late()), (image(4), image(4)), *ALL))["convolution"] == 1


class Precisions(nn.Module):
    """Results of two dtypes, which a cat makes one of."""

    def __init__(self) -> None:
        super().__init__()
        self.rough, self.exact = nn.Conv2d(4, 4, 1).half(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.rough(x.half()), self.exact(x)], 1)


def test_a_convolution_writes_in_its_own_dtype_only() -> None:
    graph = apply(functional(export_static(settled(Precisions()), (image(4),))), ALL)
    assert operators(graph)["cat"] == 1


def test_convolutions_stay_that_are_not_channels_last_or_have_groups_or_computed_weights() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight * x.mean())

    assert "convolution" not in operators(rewritten(nn.Conv2d(4, 4, 3).eval(), (torch.randn(2, 4, 8, 8),), *ALL))
    assert "convolution" not in operators(rewritten(settled(nn.Conv2d(4, 4, 3, groups=2)), (image(4),), *ALL))
    assert "convolution" not in operators(rewritten(settled(Computed()), (image(4),), *ALL))


def test_weights_exist_once() -> None:
    module = settled(Joined(layer(4, 4, 3), layer(4, 4, 3)))
    weights = Weights()
    one, other = (rewritten(module, (image(4, rows=rows),), *ALL, weights=weights) for rows in (1, 2))
    assert {w.data_ptr() for w in one.buffers()} == {w.data_ptr() for w in other.buffers()}


def test_convolutions_into_one_tensor_do_not_wait_for_each_other() -> None:
    """As operators of a program: parts of a buffer that do not touch."""
    graph = rewritten(settled(Joined(layer(4, 4), layer(4, 8, 3), layer(4, 12))), (image(4),), *ALL)
    program = lower(torch.export.export(graph, (image(4),)), [image(4)])
    assert [operator.target for operator in program.graph.operators] == ["opara.convolution.default"] * 3
    assert not any(program.graph.predecessors)


OPERANDS: dict[str, Callable[[], list[object]]] = {
    "with everything": lambda: [image(4, 5), torch.randn(6, 4, 3, 3), torch.randn(6), image(6, 5), [1, 1], [1, 1]],
    "alone": lambda: [image(4, 5), torch.randn(6, 4, 3, 3), None, None, [2, 2], [1, 1]],
}


@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize("relu", [False, True])
def test_the_operator(name: str, relu: bool) -> None:
    """Against the formula, into channels 4 to 10 of 16, and nowhere else."""
    x, weight, bias, residual, stride, padding = arguments = OPERANDS[name]()
    expected = nn.functional.conv2d(x, weight, bias, stride, padding)  # type: ignore[call-overload]
    expected = expected if residual is None else expected + residual
    whole = torch.full((2, 16, *expected.shape[2:]), 7.0).to(memory_format=CHANNELS_LAST)
    given = (*arguments, [1, 1], 1, relu, "", whole[:, 4:10])
    with FlopCounterMode(display=False) as counter:
        convolution(*given)
    torch.testing.assert_close(whole[:, 4:10], expected.relu() if relu else expected)
    assert bool((whole[:, :4] == 7).all())
    assert bool((whole[:, 10:] == 7).all())
    assert counter.get_total_flops() == 2 * expected.numel() * 4 * 3 * 3
    torch.library.opcheck(convolution, given, test_utils=("test_schema", "test_faketensor"))


def test_the_form_of_a_tensor_does_not_depend_on_strides_that_say_nothing() -> None:
    flat = torch.empty(1, 8, 1, 1)
    assert form(flat) == form(flat.to(memory_format=CHANNELS_LAST)) == Form((1, 8, 1, 1), (8, 1, 8, 8))
    inside = torch.empty(1, 16, 3, 5).to(memory_format=CHANNELS_LAST)[:, 8:12]
    assert form(inside) == Form((1, 4, 3, 5), (240, 1, 80, 16))
    assert form(torch.empty(2, 1, 3, 5)) == Form((2, 1, 3, 5), (15, 1, 5, 1))
