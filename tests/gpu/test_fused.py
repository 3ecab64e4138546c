"""Fused kernels on the GPU: every kind of module lowers right, or says why it does not."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opara_server.engine.build import compile_model
from opara_server.engine.capture import capture
from opara_server.engine.device import Device
from opara_server.engine.errors import LoweringError
from opara_server.engine.export import export_all, export_static
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.graph import Kind
from opara_server.engine.lower_aten import lower
from opara_server.engine.lower_fused import VARIANTS, Variant, lower_fused
from opara_server.engine.lowerings import Lowerings
from opara_server.engine.options import FUSED, BuildOptions
from opara_server.engine.policies import make_schedule
from opara_server.engine.program import Program
from opara_server.engine.rewrites import Weights
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import fill_random, static_inputs
from opara_server.engine.verify import error_norm, poison
from tests.engine.models import ZOO
from tests.gpu.answers import BOUND, agreeing
from tests.gpu.nets import NETS, Dense, make
from tests.gpu.nets import built as net

GPU = torch.device("cuda")
REPLAYS = 120
MEASURED = [name for name in FUSED if name != "fused_max_autotune"]
ON_THE_CPU = {"attention", "constant written later", "literal"}  # where they make tensors of their own
MISTAKEN = "recurrent"  # Inductor 2.11 loses the shape of an LSTM's hidden state


def built(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.inference_mode(False):
        return build().eval().cuda()


def lowered(module: nn.Module, specs: Sequence[TensorSpec], rows: int, lowering: str = "fused") -> Program:
    inputs = static_inputs(specs, rows, GPU, channels_last=False)
    return lower_fused(export_static(module, inputs), inputs, lowering, Weights())


def check(program: Program, flat: FlatModule, device: Device, policy: str, bound: float) -> None:
    schedule = make_schedule(program.graph, device.profile(program), policy)
    graph = capture(program, schedule, device)
    with agreeing(bound) as agree:
        for _ in range(REPLAYS):
            fill_random(graph.inputs, flat.inputs)
            expected = flat(*[tensor.clone() for tensor in graph.inputs])
            poison((*graph.outputs, graph.arena))
            graph.replay()
            device.synchronize()
            agree(graph.outputs, expected)
    graph.close()


@pytest.mark.parametrize("lowering", MEASURED)
@pytest.mark.parametrize("name", NETS)
def test_replays_on_fresh_inputs_agree_with_eager(name: str, lowering: str, device: Device) -> None:
    module, specs = make(name)
    flat = FlatModule(module, specs, 3, GPU, channels_last=False)
    program = lowered(module, specs, 3, lowering)
    for policy in ("sequential", "opara", "critical_path"):
        check(program, flat, device, policy, BOUND)


@pytest.mark.parametrize("lowering", ["fused", "fused_rewritten"])
@pytest.mark.parametrize("name", [name for name in ZOO if name not in {*ON_THE_CPU, MISTAKEN}])
def test_the_zoo(name: str, lowering: str, device: Device) -> None:
    case = ZOO[name]
    module = built(case.build)
    flat = FlatModule(module, case.inputs, 4, GPU, channels_last=False)
    check(lowered(module, case.inputs, 4, lowering), flat, device, "critical_path", 1e-3)  # TF32


@pytest.mark.usefixtures("device")
def test_what_inductor_gets_wrong_is_refused() -> None:
    with pytest.raises(LoweringError, match="Inductor gives"):
        lowered(built(ZOO[MISTAKEN].build), ZOO[MISTAKEN].inputs, 4)


def test_operators_are_fewer_and_their_memory_is_planned(device: Device) -> None:
    module, specs = make("inceptions")
    inputs = static_inputs(specs, 2, device.torch_device(), channels_last=False)
    program, aten = lowered(module, specs, 2), lower(export_static(module, inputs), inputs)
    assert len(program.graph) <= len(aten.graph) * 0.6  # batch norms and activations are parts of others
    assert program.graph.width >= 4
    assert Kind.ARENA in {buffer.kind for buffer in program.graph.buffers}


def test_concatenations_of_many_are_made_by_who_reads_them(device: Device) -> None:
    spec = TensorSpec("image", "float16", (3, 32, 32))
    with torch.inference_mode(False):
        module = net(Dense, [spec]).cuda().half().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = static_inputs([spec], 2, GPU, channels_last=True)
    program = lower_fused(export_static(module, inputs), inputs, "fused_rewritten", Weights())
    writes = Counter(buffer for operator in program.graph.operators for buffer in operator.writes)
    assert set(writes.values()) == {1}
    check(program, FlatModule(module, [spec], 2, GPU, channels_last=True), device, "critical_path", BOUND)


def test_weights_outlive_the_module(device: Device) -> None:
    module, specs = make("inceptions")
    flat = FlatModule(module, specs, 2, GPU, channels_last=False)
    program = lowered(module, specs, 2)
    graph = capture(program, make_schedule(program.graph, device.profile(program), "opara"), device)
    fill_random(graph.inputs, specs)
    expected = [tensor.clone() for tensor in flat(*graph.inputs)]
    del program, module, flat
    torch.cuda.empty_cache()
    junk = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(64)]
    graph.replay()
    device.synchronize()
    assert error_norm(graph.outputs[0], expected[0]) <= BOUND
    del junk


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        hidden = self.table(tokens)
        hidden.add_(1)
        return {"hidden": hidden[:, 1:], "logits": self.head(torch.tanh(hidden))}


TOKENS = (TensorSpec("tokens", "int64", (6,), 0, 50),)


@pytest.mark.parametrize("lowering", ["fused", "fused_rewritten", "fused_rewritten_combo"])
def test_tied_weights_in_place_views_and_dicts(lowering: str, device: Device) -> None:
    module = built(Tied)
    flat = FlatModule(module, TOKENS, 3, GPU, channels_last=False)
    check(lowered(module, TOKENS, 3, lowering), flat, device, "critical_path", 1e-3)


def test_a_search_and_a_warm_start_with_tied_weights_views_and_dicts(tmp_path: Path) -> None:
    module = built(Tied)
    options = BuildOptions((1, 4), lowering="fused_rewritten", tuning_budget_s=20.0, cache_dir=tmp_path)
    for reused in (False, True):
        compiled = compile_model("tied", module, TOKENS, "cuda", options)
        assert compiled.plan.reused == reused
        assert all(any(c.lowering == "fused_rewritten" for c in b.candidates) for b in compiled.plan.buckets)
        graph = compiled.graph(4)
        with torch.inference_mode():
            for _ in range(REPLAYS):
                fill_random(graph.inputs, TOKENS)
                poison((*graph.outputs, graph.arena))
                graph.replay()
                for out, ref in zip(graph.outputs, module(*graph.inputs).values(), strict=True):
                    assert error_norm(out, ref) <= 1e-3
        compiled.close()


def test_max_autotune(device: Device) -> None:
    module, specs = make("attention")
    flat = FlatModule(module, specs, 3, GPU, channels_last=False)
    check(lowered(module, specs, 3, "fused_max_autotune"), flat, device, "critical_path", BOUND)


@torch.library.custom_op("opara_test::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    import triton  # noqa: PLC0415 - on GPU machines only

    from tests.gpu.kernels import halve_kernel  # noqa: PLC0415

    out = torch.empty_like(x)
    halve_kernel[(triton.cdiv(x.numel(), 128),)](x, out, x.numel(), BLOCK=128)
    return out


@halve.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = halve(x + 1)
        return halved * 3


class HalvesInTheOpen(nn.Module):
    """Its kernel is no operator: an export sees the kernel itself."""

    def forward(self, x: Tensor) -> Tensor:
        from torch.library import wrap_triton  # noqa: PLC0415

        from tests.gpu.kernels import halve_kernel  # noqa: PLC0415

        out = torch.empty_like(x)
        wrap_triton(halve_kernel)[(x.numel(),)](x, out, x.numel(), BLOCK=1)
        return out * 3


VECTOR = (TensorSpec("x", "float32", (32,)),)


def test_an_operator_of_the_model_s_own(device: Device) -> None:
    module = built(Halves)
    flat = FlatModule(module, VECTOR, 3, GPU, channels_last=False)
    check(lowered(module, VECTOR, 3), flat, device, "critical_path", 1e-3)


def test_a_search_in_a_child_and_a_warm_start_know_an_operator_of_the_model_s_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = BuildOptions((1, 4), lowering="fused_rewritten", tuning_budget_s=20.0, cache_dir=tmp_path)
    for reused in (False, True):
        compiled = compile_model("halves", built(Halves), VECTOR, "cuda", options)
        assert compiled.plan.reused == reused
        for bucket in compiled.plan.buckets:
            assert any(c.lowering == "fused_rewritten" and c.measured_us > 0 for c in bucket.candidates)
            graph = compiled.graph(bucket.batch_size)
            for _ in range(REPLAYS):
                with torch.inference_mode():
                    fill_random(graph.inputs, VECTOR)
                    poison((*graph.outputs, graph.arena))
                    graph.replay()
                    torch.testing.assert_close(graph.outputs[0], (graph.inputs[0] + 1) * 1.5)
        compiled.close()
    assert "no search for fused operators" not in caplog.text


def test_a_kernel_of_the_model_s_own_is_refused_with_its_name() -> None:
    with pytest.raises(LoweringError, match="of its own: halve_kernel"):
        lowered(built(HalvesInTheOpen), VECTOR, 3)


@pytest.mark.usefixtures("device")
def test_what_inductor_refuses_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(VARIANTS, "fused", Variant((), {"no_such_option": True}))
    module, specs = make("attention")
    inputs = {rows: static_inputs(specs, rows, GPU, channels_last=False) for rows in (1, 4)}
    lowerings = Lowerings("refused", export_all(module, inputs))
    with caplog.at_level(logging.WARNING):
        found = [p.lowering for rows in (1, 4) for p in lowerings.fused(rows, inputs[rows], ["fused", "fused_combo"])]
    assert caplog.text.count("no fused lowering") == 1
    assert found == ["fused_combo"] * 2


def test_what_no_fused_lowering_can_do_runs_on_other_operators_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    options = BuildOptions((1, 2), tuning_budget_s=20.0)
    compiled = compile_model("open", built(HalvesInTheOpen), VECTOR, "cuda", options)
    assert {bucket.lowering for bucket in compiled.plan.buckets} <= {"aten", "whole"}
    said = [record.getMessage() for record in caplog.records if "halve_kernel" in record.getMessage()]
    assert len(said) == 1 or compiled.plan.fallback_reason, caplog.text
    graph = compiled.graph(2)
    with torch.inference_mode():
        for _ in range(REPLAYS):
            fill_random(graph.inputs, VECTOR)
            graph.replay()
            torch.testing.assert_close(graph.outputs[0], graph.inputs[0] * 1.5)
    compiled.close()


def test_the_fastest_lowering_serves() -> None:
    module, specs = make("inceptions")
    # Folded weights are rounded once, alike for all pixels: the mean before the last layer keeps that, unlike eager's.
    options = BuildOptions((1, 4), channels_last=True, tuning_budget_s=60.0, tolerance=BOUND)
    compiled = compile_model("inceptions", module, specs, "cuda", options)
    for bucket in compiled.plan.buckets:
        assert bucket.lowering in FUSED
        assert {c.lowering for c in bucket.candidates} >= {"aten", "fused_rewritten"}
        assert bucket.measured_us < bucket.sequential_us
    compiled.close()
