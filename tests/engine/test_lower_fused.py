"""What can be known of the fused lowering without a GPU; the rest is in tests/gpu/test_fused.py."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn

from opara_server.engine.export import export_static
from opara_server.engine.graph import Kind
from opara_server.engine.lower_fused import OPTIONS, VARIANTS, NoVariantError, _compile, _flat, lower_fused
from opara_server.engine.lowering import program_of
from opara_server.engine.options import FUSED
from opara_server.engine.rewrites import PASSES, Weights, apply, functional
from opara_server.engine.tensors import static_inputs
from opara_server.engine.trial_record import Given
from tests.engine.models import ZOO
from tests.engine.rewriting import TORCH_WARNS, image, settled
from tests.engine.test_rewrites_explicit import ALL as EXPLICIT
from tests.engine.test_rewrites_explicit import Joined, layer


def test_every_lowering_of_the_options_has_its_variant_of_passes_that_exist_in_their_order() -> None:
    assert sorted(VARIANTS) == sorted(FUSED)
    places = {name: place for place, name in enumerate(PASSES)}
    for variant in VARIANTS.values():
        order = [places[name] for name in variant.rewrites]
        assert order == sorted(set(order))
    assert {name for variant in VARIANTS.values() for name in variant.rewrites} == PASSES.keys()


def test_every_option_of_a_variant_is_one_of_inductor_s() -> None:
    known = torch._inductor.config.get_config_copy()
    assert {name for variant in VARIANTS.values() for name in variant.options} <= known.keys()


def test_on_a_cpu_it_is_refused() -> None:
    case = ZOO["chain"]
    inputs = static_inputs(case.inputs, 2, torch.device("cpu"), channels_last=False)
    exported = export_static(case.build().eval(), inputs)
    with pytest.raises(NoVariantError, match="for GPUs only"):
        lower_fused(exported, inputs, "fused", Weights())


def test_without_triton_or_its_compiler_it_is_refused_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnAGpu:
        is_cuda = True

    exported: Any = None
    inputs: Any = [OnAGpu()]
    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: False)
    with pytest.raises(NoVariantError, match="there is no Triton"):
        lower_fused(exported, inputs, "fused", Weights())
    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: True)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoVariantError, match="Triton finds no C compiler"):
        lower_fused(exported, inputs, "fused", Weights())


@TORCH_WARNS
def test_convolutions_that_are_told_where_to_write_come_through_without_a_copy() -> None:
    """Inductor may copy what an operator writes to; the rest of the graph needs no kernel of its own, so that a CPU
    shows it."""
    joined = Joined(layer(16, 12), nn.Sequential(layer(16, 16), layer(16, 16, 3)), Joined(layer(16, 12), layer(16, 24)))
    module = settled(nn.Sequential(layer(4, 16, 3), joined, layer(64, 12)))
    x = image(4)
    with torch.inference_mode(False), torch.no_grad():
        graph = _flat(apply(functional(export_static(module, [x])), EXPLICIT, Weights()))
        program = program_of(_compile(graph, (x.clone(),), OPTIONS), [Given(x, Kind.INPUT)], "fused")
        torch.testing.assert_close(program.run_in_order()[0], module(x))
    operators = program.graph.operators
    assert {operator.target for operator in operators} == {"opara.convolution.default"}
    assert [len(before) for before in program.graph.predecessors] == [0, 1, 1, 1, 1, 1, 4]
    assert Kind.ACTIVATION not in {buffer.kind for buffer in program.graph.buffers}


class Mixed(nn.Module):
    """Kernels of our own between convolutions, two of them of the same shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead, self.behind = layer(4, 16, 3), layer(16, 12)
        self.sides = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1, groups=16) for _ in range(2)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.ahead(x)
        one, other = (side(x) for side in self.sides)
        heads, others = one.flatten(2).unflatten(1, (2, 8)).mT, other.flatten(2).unflatten(1, (2, 8)).mT
        mixed = nn.functional.scaled_dot_product_attention(heads, others, others)
        return self.behind(one), nn.functional.scaled_dot_product_attention(mixed, heads, others)


@TORCH_WARNS
def test_so_do_kernels_of_our_own() -> None:
    module, x = settled(Mixed()), image(4)
    passes = ("attention", "depthwise", "conv_epilogues", "explicit_convolutions", "explicit_kernels")
    with torch.inference_mode(False), torch.no_grad():
        graph = _flat(apply(functional(export_static(module, [x])), passes, Weights()))
        program = program_of(_compile(graph, (x.clone(),), OPTIONS), [Given(x, Kind.INPUT)], "fused")
        for out, expected in zip(program.run_in_order(), module(x), strict=True):
            torch.testing.assert_close(out, expected)
    targets = Counter(operator.target.removeprefix("opara.") for operator in program.graph.operators)
    assert targets == {"convolution.default": 2, "depthwise_out.default": 2, "attention_out.default": 2}
    assert Kind.ACTIVATION not in {buffer.kind for buffer in program.graph.buffers}


@TORCH_WARNS
@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU()], ids=str)
def test_so_do_linear_layers_with_an_activation(act: nn.Module) -> None:
    """Of rows in two dimensions; one has no bias. Inductor would write biases of up to 8 numbers in kernels' code."""
    layers = [nn.Linear(8, 32), act, nn.Linear(32, 16, bias=False), act, nn.Linear(16, 24), act]
    module, x = settled(nn.Sequential(*layers)), torch.randn(2, 5, 8)
    passes = ("linear_epilogues", "explicit_linears")
    with torch.inference_mode(False), torch.no_grad():
        graph = _flat(apply(functional(export_static(module, [x])), passes, Weights()))
        program = program_of(_compile(graph, (x.clone(),), OPTIONS), [Given(x, Kind.INPUT)], "fused")
        torch.testing.assert_close(program.run_in_order()[0], module(x))
    operators = program.graph.operators
    assert [operator.target for operator in operators] == ["opara.linear_activation.default"] * 3
    kinds = [program.graph.buffers[buffer].kind for operator in operators for buffer in operator.writes]
    assert kinds == [Kind.ARENA, Kind.ARENA, Kind.OUTPUT]
    assert [len(before) for before in program.graph.predecessors] == [0, 1, 1]
