"""Whole models on the GPU: compiled, chosen, verified, reused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opara_server.engine import optimize
from opara_server.engine.build import compile_model
from opara_server.engine.errors import CaptureError
from opara_server.engine.options import FUSED, BuildOptions
from opara_server.engine.spec import TensorSpec
from opara_server.engine.verify import error_norm
from tests.gpu.answers import BOUND
from tests.gpu.nets import NETS, Inceptions, built, make


def test_an_optimized_model_answers_as_eager_does() -> None:
    module, _ = make("inceptions")
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast = optimize(
        module, torch.randn(2, 3, 32, 32).half(), batch_sizes=[1, 4, 8], channels_last=True, tuning_budget_s=60.0
    )
    assert fast.plan.device == "cuda"
    for bucket in fast.plan.buckets:
        assert bucket.measured_us <= bucket.sequential_us
        assert {c.policy for c in bucket.candidates} >= {"sequential", "opara"}
    for rows in (1, 2, 3, 4, 7, 8, 21):
        x = torch.randn(rows, 3, 32, 32, device="cuda").half()
        with torch.inference_mode():
            assert error_norm(fast(x)["logits"], module(x)["logits"]) <= BOUND
    fast.close()


class Names(nn.Module):
    """One of 1000 names per image, and nothing else: in float16 rounding changes 1 in 200."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Inceptions()
        self.net.head = nn.Linear(64, 1000)

    def forward(self, image: Tensor) -> Tensor:
        digit: Tensor = self.net(image)["digit"]
        return digit


def test_integers_that_rounding_changes_are_not_wrong() -> None:
    _, specs = NETS["inceptions"]
    with torch.inference_mode(False):
        module = built(Names, specs).cuda().half()
    compiled = compile_model("names", module, specs, "cuda", BuildOptions((1, 32), tuning_budget_s=30.0))
    for bucket in compiled.plan.buckets:
        assert bucket.lowering in FUSED
        assert not {candidate.label for candidate in bucket.candidates if candidate.given_up}
    compiled.close()


def test_a_saved_plan_is_verified_and_timed_again(tmp_path: Path) -> None:
    module, specs = make("attention")
    options = BuildOptions((1, 4), cache_dir=tmp_path, tuning_budget_s=30.0)
    first = compile_model("attention", module, specs, "cuda", options)
    second = compile_model("attention", module, specs, "cuda", options)
    assert not first.plan.reused
    assert second.plan.reused
    assert [b.measured_us for b in second.plan.buckets] != [b.measured_us for b in first.plan.buckets]
    assert [b.sequential_us for b in second.plan.buckets] == [b.sequential_us for b in first.plan.buckets]  # as saved
    first.close()
    graph = second.graph(4)  # survives the end of the other model
    graph.replay()
    with torch.inference_mode():
        assert error_norm(graph.outputs[0], module(*graph.inputs)) <= BOUND
    second.close()


def test_without_a_folder_for_temporary_files_operators_run_in_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a search nor the profiler can do without."""
    module, specs = make("attention")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    compiled = compile_model("attention", module, specs, "cuda", BuildOptions((2,)))
    assert "no search for fused operators" in caplog.text
    assert "nothing is searched for, operators run in sequence" in caplog.text
    assert [(bucket.lowering, bucket.policy) for bucket in compiled.plan.buckets] == [("aten", "sequential")]
    graph = compiled.graph(2)
    graph.replay()
    with torch.inference_mode():
        assert error_norm(graph.outputs[0], module(*graph.inputs)) <= BOUND
    compiled.close()


SPEC = TensorSpec("x", "float32", (4,))


class Breaks(nn.Module):
    """What torch.export refuses, while CUDA captures the whole."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.data_ptr() % 4 == 0 else x


class LooksAtData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.abs().sum()) >= 0 else x


def test_what_cannot_be_exported_runs_as_one_graph(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        compiled = compile_model(
            "breaks", Breaks().eval(), [TensorSpec("x", "float32", (4,))], "cuda", BuildOptions((2,))
        )
    assert compiled.plan.fallback_reason
    assert "one sequential graph" in caplog.text
    assert compiled.plan.buckets[0].lowering == "whole"
    graph = compiled.graph(2)
    graph.replay()
    assert torch.equal(graph.outputs[0], graph.inputs[0] * 2)
    compiled.close()


def test_what_cannot_be_captured_fails() -> None:
    with pytest.raises(CaptureError):
        compile_model("looks", LooksAtData().eval(), [SPEC], "cuda", BuildOptions((2,)))
    x = torch.ones(4, device="cuda")
    assert float(x.sum()) == 4  # the GPU is as it was
