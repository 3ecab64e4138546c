"""Our own Triton kernels as machine code: launched as Triton launches them, and in programs that Inductor compiles."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from opara_server.engine.capture import capture
from opara_server.engine.device import Device
from opara_server.engine.export import export_static
from opara_server.engine.graph import Kind
from opara_server.engine.kernel import KernelLaunch
from opara_server.engine.lower_fused import VARIANTS, Variant, lower_fused
from opara_server.engine.policies import make_schedule
from opara_server.engine.program import Program
from opara_server.engine.program_json import ProgramReader, ProgramWriter
from opara_server.engine.rewrites import PASSES, TRITON_CALLS, Weights
from opara_server.engine.rewrites.attention_operator import ATTENTION_OUT
from opara_server.engine.rewrites.depthwise_operator import DEPTHWISE_OUT
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import fill_random, static_inputs
from opara_server.engine.verify import error_norm, poison
from tests.gpu.answers import BOUND
from tests.gpu.nets import Separable, built
from tests.gpu.test_kernels import ATTENTIONS, LAYERS

CHANNELS_LAST = torch.channels_last


IMAGE = TensorSpec("x", "float16", (3, 16, 16))
OURS = {"attention_kernel", "depthwise_kernel"}


@pytest.fixture
def separable(device: Device, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Program]:
    names = ("fold_constants", "attention", "depthwise", "narrow_linears", "explicit_kernels")
    assert set(names) <= set(PASSES)
    monkeypatch.setitem(VARIANTS, "fused", Variant(names))
    with torch.inference_mode(False):
        module = built(Separable, [IMAGE]).cuda().half().to(memory_format=CHANNELS_LAST)  # type: ignore[call-overload]
        for weight in module.parameters():
            weight.requires_grad_(False)
    inputs = static_inputs([IMAGE], 2, device.torch_device(), channels_last=True)
    return module, lower_fused(export_static(module, inputs), inputs, "fused", Weights())


def launches(program: Program) -> list[tuple[int, KernelLaunch]]:
    """Those of our own kernels, with their operators."""
    calls = [(operator, call) for operator, body in enumerate(program.bodies) for call in body]
    targets = [(operator, call.target) for operator, call in calls if isinstance(call.target, KernelLaunch)]
    return [(operator, target) for operator, target in targets if target.code.name in OURS]


def check_replays(program: Program, module: nn.Module, device: Device, policy: str) -> None:
    graph = capture(program, make_schedule(program.graph, device.profile(program), policy), device)
    for _ in range(20):
        fill_random(graph.inputs, [IMAGE])
        expected = module(graph.inputs[0].clone())
        poison((*graph.outputs, graph.arena))
        graph.replay()
        device.synchronize()
        for out, ref in zip(graph.outputs, expected.values(), strict=True):
            assert error_norm(out, ref) < BOUND
    graph.close()


@pytest.mark.parametrize("policy", ["sequential", "opara", "critical_path"])
def test_inductor_leaves_them_whole(separable: tuple[nn.Module, Program], device: Device, policy: str) -> None:
    module, program = separable
    targets = [operator.target for operator in program.graph.operators]
    assert [targets.count(f"opara.{name}.default") for name in ("depthwise_out", "attention_out")] == [2, 1]
    assert not any("_scaled_dot" in target or target.startswith(("aten.copy", "aten.clone")) for target in targets)
    assert sum("mm" in target for target in targets) == 1  # the head is narrow
    check_replays(program, module, device, policy)


def test_in_a_finished_program_they_are_machine_code_that_writes_into_planned_memory(
    separable: tuple[nn.Module, Program], device: Device
) -> None:
    _, program = separable
    assert not any("opara" in str(call.target) for body in program.bodies for call in body)
    ours = launches(program)
    assert len(ours) == 3
    written = {buffer for operator, _ in ours for buffer in program.graph.operators[operator].writes}
    assert {program.graph.buffers[buffer].kind for buffer in written} == {Kind.ARENA}
    profile = device.profile(program)
    attention_flops, wide_flops, small_flops = 2 * 2 * (2 * 4) * 64 * 64 * 16, 2 * 2 * 32 * 64 * 25, 2 * 2 * 64 * 64 * 9
    flops = sorted(profile.operators[operator].flops for operator, _ in ours)
    assert flops == sorted([attention_flops, wide_flops, small_flops])
    assert all(len(profile.operators[operator].kernels) == 1 for operator, _ in ours)


def test_a_saved_program_needs_no_triton(
    separable: tuple[nn.Module, Program], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.jit import JITFunction  # noqa: PLC0415 - on GPU machines only

    module, program = separable
    weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    writer = ProgramWriter(weights.items())
    saved = json.loads(json.dumps(writer.write(program)))
    for way in ("run", "warmup"):
        monkeypatch.setattr(JITFunction, way, None)
    again = ProgramReader(weights, writer.tensors, device.torch_device()).read(saved, program.inputs)
    assert launches(again) == launches(program)
    for out, expected in zip(again.run_in_order(), program.run_in_order(), strict=True):
        assert torch.equal(out, expected)
    check_replays(again, module, device, "critical_path")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [*ATTENTIONS[:7], (1, 1, 1, 1, 16)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_attention_as_machine_code(shape: tuple[int, ...], dtype: torch.dtype, biased: bool) -> None:
    rows, heads, queries, keys, width = shape
    options: Any = {"dtype": dtype, "device": "cuda"}
    query, key, val = (torch.randn(rows, n, heads, width, **options).transpose(1, 2) for n in (queries, keys, keys))
    bias = torch.randn(rows, 1, queries, -(-keys // 8) * 8, **options) if biased else None
    same_launch(ATTENTION_OUT, (query, key, val, bias, not biased, 0.2), torch.empty_like(query))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("channels", "side", "taps", "stride", "dtype"), [*LAYERS, (3, 1, 3, 1, torch.half)], ids=str)
def test_depthwise_as_machine_code(
    channels: int, side: int, taps: int, stride: int, dtype: torch.dtype, whole: bool
) -> None:
    x = torch.randn(1, channels, side, side, device="cuda").to(dtype, memory_format=CHANNELS_LAST)
    biases = [torch.randn(channels, device="cuda") if whole else None for _ in range(2)]
    size = [-(-side // stride)] * 2
    out = torch.empty(1, channels, *size, dtype=dtype, device="cuda").to(memory_format=CHANNELS_LAST)
    weight = torch.randn(taps, taps, channels, device="cuda")
    geometry = ([stride] * 2, [taps // 2] * 2, [1, 1], size)
    same_launch(DEPTHWISE_OUT, (x, weight, *biases, *geometry, whole, whole), out)


def same_launch(operator: OpOverload[..., Any], given: tuple[Any, ...], out: Tensor) -> None:
    call = TRITON_CALLS[operator](*given, out.fill_(torch.nan))
    call.run()
    expected = out.clone()
    launch, parameters = call.compiled()
    out.fill_(torch.nan)
    launch(*parameters)
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
    assert not out.isnan().any()
