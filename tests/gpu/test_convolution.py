"""Convolutions through cudnn-frontend: chosen plans against float64, and programs that are made of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from opara_server.engine.capture import capture
from opara_server.engine.device import Device
from opara_server.engine.export import export_static
from opara_server.engine.graph import Kind
from opara_server.engine.lower_fused import lower_fused
from opara_server.engine.policies import make_schedule
from opara_server.engine.program import Program
from opara_server.engine.program_json import ProgramReader, ProgramWriter
from opara_server.engine.rewrites import Weights, convolution_plans, cudnn_plans
from opara_server.engine.rewrites.convolution_layer import Layer, form
from opara_server.engine.rewrites.convolution_operator import convolution
from opara_server.engine.rewrites.convolution_plans import fastest
from opara_server.engine.rewrites.cudnn_plans import frontend
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import fill_random, static_inputs
from opara_server.engine.verify import error_norm
from tests.engine.rewriting import settled
from tests.engine.test_rewrites_explicit import Joined, layer

CHANNELS_LAST = torch.channels_last
GPU = torch.device("cuda")
BOUNDS = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}  # relative error norms
EXPLICIT = "opara.convolution.default"

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() and frontend() is None, reason="nvidia-cudnn-frontend is not installed"
)

SHAPES = [  # channels in and out, side, taps, stride
    (480, 192, 14, (1, 1), 1),
    (96, 208, 14, (3, 3), 1),
    (16, 48, 14, (5, 5), 1),
    (8, 64, 224, (7, 7), 2),
    (192, 192, 17, (1, 7), 1),
    (40, 40, 28, (3, 3), 1),
]


def gpu(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    tensor = torch.randn(shape, device=GPU, dtype=torch.float32) * scale
    return tensor.to(dtype).contiguous(memory_format=CHANNELS_LAST) if len(shape) == 4 else tensor.to(dtype)


@pytest.mark.parametrize("inside", [False, True], ids=["of its own", "channels of a wider tensor"])
@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_chosen_plan_is_right(
    shape: tuple[int, int, int, tuple[int, int], int], dtype: torch.dtype, inside: bool
) -> None:
    inputs, outputs, side, taps, step = shape
    padding = [taps[0] // 2, taps[1] // 2]
    x, weight = gpu(1, inputs, side, side, dtype=dtype), gpu(outputs, inputs, *taps, dtype=dtype, scale=0.05)
    bias = gpu(outputs, dtype=dtype)
    exact = functional.conv2d(x.double(), weight.double(), bias.double(), step, padding)
    residual = gpu(*exact.shape, dtype=dtype) if side == 28 else None
    exact = (exact if residual is None else exact + residual.double()).relu()
    begin, width = (32, outputs + 64) if inside else (0, outputs)
    whole = torch.full((1, width, *exact.shape[2:]), 7.0, dtype=dtype, device=GPU).to(memory_format=CHANNELS_LAST)
    out = whole[:, begin : begin + outputs]
    geometry = ((step, step), tuple(padding), (1, 1))
    forms = form(x), form(weight), None if residual is None else form(residual), form(out)
    told = Layer(GPU, dtype, *forms, biased=True, geometry=geometry, relu=True)
    for together in (1, 3):
        choice = fastest(told, compiled=True, tf32=False, together=together)
        if choice is None:
            assert inside
            pytest.skip("no plan of cuDNN's writes there")
        convolution(x, weight, bias, residual, *map(list, geometry), 1, True, choice.plan, out)
        assert error_norm(out, exact) < BOUNDS[dtype]
        whole[:, begin : begin + outputs] = 7.0
        assert bool((whole == 7.0).all())


def test_choosing_leaves_the_memory_to_others() -> None:
    """As many plans as NASNet's widest layer has, three chains of each: the memory of one is used for the next."""
    x, weight = gpu(1, 4032, 11, 11, dtype=torch.float32), gpu(672, 4032, 1, 1, dtype=torch.float32)
    out = gpu(1, 672, 11, 11, dtype=torch.float32)
    told = Layer(GPU, torch.float32, form(x), form(weight), None, form(out), False, ((1, 1), (0, 0), (1, 1)), True)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    assert fastest(told, compiled=False, tf32=True, together=3) is not None
    assert torch.cuda.max_memory_reserved() - before < 1 << 29


def lowered(build: Callable[[], nn.Module], rows: int) -> tuple[Program, nn.Module]:
    with torch.inference_mode(False):  # from the first weight on: one made in inference mode has no version counter
        module = settled(build()).cuda().half().to(memory_format=CHANNELS_LAST)  # type: ignore[call-overload]
        for weight in module.parameters():
            weight.requires_grad_(False)
    inputs = static_inputs([SPEC], rows, GPU, channels_last=True)
    return lower_fused(export_static(module, inputs), inputs, "fused_rewritten", Weights()), module


SPEC = TensorSpec("x", "float16", (64, 14, 14))


def inception() -> nn.Module:
    reduced = [nn.Sequential(layer(64, 32), layer(32, wide, taps)) for wide, taps in ((64, 3), (32, 5))]
    pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), layer(64, 32))
    joined = Joined(layer(64, 64), *reduced, pooled)
    return nn.Sequential(layer(64, 64, 3), joined, layer(192, 64, 3), nn.AdaptiveAvgPool2d(1))


def check(program: Program, module: nn.Module, device: Device, policy: str) -> None:
    exact = copy.deepcopy(module).double()
    graph = capture(program, make_schedule(program.graph, device.profile(program), policy), device)
    for _ in range(20):
        fill_random(graph.inputs, [SPEC])
        expected = exact(*[tensor.double() for tensor in graph.inputs])
        graph.replay()
        device.synchronize()
        assert error_norm(graph.outputs[0], expected) < 5e-3


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("policy", ["sequential", "opara"])
def test_a_model_of_explicit_convolutions(device: Device, rows: int, policy: str) -> None:
    program, module = lowered(inception, rows)
    targets = [operator.target for operator in program.graph.operators]
    assert targets.count(EXPLICIT) == 8
    written = {b for operator in program.graph.operators if operator.target == EXPLICIT for b in operator.writes}
    assert {program.graph.buffers[buffer].kind for buffer in written} == {Kind.ARENA}
    assert not [target for target in targets if "copy" in target or "clone" in target]
    check(program, module, device, policy)


@pytest.mark.usefixtures("device")
def test_a_saved_program_has_the_same_plans_and_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    program, module = lowered(inception, 1)
    weights = dict(module.named_parameters())
    writer = ProgramWriter(weights.items())
    saved = writer.write(program)
    monkeypatch.setattr(convolution_plans, "fastest", None)
    cudnn_plans.plan.cache_clear()
    again = ProgramReader(weights, writer.tensors, GPU).read(saved, program.inputs)
    chosen = [call.args[9] for body in again.bodies for call in body if str(call.target) == EXPLICIT]
    assert len(chosen) == 8
    assert all(chosen)
    for out, ref in zip(again.run_in_order(), program.run_in_order(), strict=True):
        assert torch.equal(out, ref)


def test_without_the_package_convolutions_are_pytorchs_own(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution_plans, "frontend", lambda: None)
    fastest.cache_clear()
    try:
        program, module = lowered(inception, 1)
        targets = [operator.target for operator in program.graph.operators]
        assert EXPLICIT not in targets
        assert targets.count("opara.convolution_relu.default") == 8
        check(program, module, device, "opara")
    finally:
        fastest.cache_clear()
