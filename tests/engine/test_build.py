"""A module on its whole way to a compiled model: plans reused, lies refused, what cannot be taken apart run whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opara_server.engine.arena import ALIGNMENT
from opara_server.engine.build import compile_model
from opara_server.engine.compiled import EXPORTING
from opara_server.engine.errors import CaptureError, DeviceError, ModelError, TuningError, VerificationError
from opara_server.engine.options import BuildOptions
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.spec import TensorSpec
from tests.engine.compiling import TWO_BUCKETS, assert_right, compiled, on_several_streams, streams_are_fast, wrong
from tests.engine.devices import ScriptedDevice, Spoil, nothing
from tests.engine.models import IMAGE, ROW, Branches, ConvBranches, Counter, Function


def test_the_plan_tells_what_runs() -> None:
    module = ConvBranches()
    model = compiled(module, IMAGE, batch_sizes=(4, 1, 4))
    assert_right(model, module)
    assert model.buckets == (1, 4)
    assert [spec.name for spec in model.outputs] == ["logits", "best_0"]
    plan = model.plan
    assert (plan.model, plan.device, plan.fallback_reason, plan.reused) == ("small", "cpu", "", False)
    assert [bucket.batch_size for bucket in plan.buckets] == [1, 4]
    for bucket in plan.buckets:
        assert (bucket.lowering, bucket.width, bucket.operators > bucket.depth > 5) == ("aten", 3, True)
        assert bucket.candidates[0].policy == "sequential"
        assert len({(c.policy, c.compact) for c in bucket.candidates}) == len(bucket.candidates) > 2
        (chosen,) = [c for c in bucket.candidates if (c.policy, c.compact) == (bucket.policy, bucket.compact)]
        assert (bucket.streams, bucket.measured_us, bucket.peak_bytes) == (
            chosen.streams,
            chosen.latest_us,
            chosen.peak_bytes,
        )
        assert bucket.streams > 1
        assert bucket.sequential_us == pytest.approx(100.0)
        assert bucket.speedup > 1.5
        outputs = model.graph(bucket.batch_size).outputs
        assert bucket.steady_bytes == sum(output.nbytes for output in outputs) > 0  # eager kernels leave nothing else
    model.close()


def halves_swapped(x: Tensor) -> Tensor:
    made = torch.empty_like(x)
    made[:, :4], made[:, 4:] = x[:, 4:], x[:, :4]
    return made * 2


def test_the_graphs_of_smaller_buckets_live_in_the_largest_one_s_arena() -> None:
    module = Function(halves_swapped)
    model = compiled(module, batch_sizes=(1, 40))
    assert_right(model, module)
    small, large = model.plan.buckets
    outputs = [sum(output.nbytes for output in model.graph(bucket).outputs) for bucket in (1, 40)]
    assert model.graph(1).arena is model.graph(40).arena
    assert (small.steady_bytes, large.steady_bytes) == (outputs[0], outputs[1] + 3 * ALIGNMENT)
    assert large.peak_bytes >= 2 * 40 * 8 * 4
    model.close()


def test_progress_only_grows() -> None:
    told: list[tuple[str, float]] = []
    model = compile_model(
        "small", Branches().eval(), ROW, "cpu", TWO_BUCKETS, lambda what, share: told.append((what, share))
    )
    model.close()
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] <= 1
    assert "capturing and verifying batch size 1" in [what for what, _ in told]


def test_nothing_is_exported_for_a_saved_plan(tmp_path: Path) -> None:
    options = replace(TWO_BUCKETS, cache_dir=tmp_path)
    told: list[str] = []
    for exports in (True, False):
        told.clear()
        model = compile_model("small", Branches().eval(), ROW, "cpu", options, lambda what, _share: told.append(what))
        assert (EXPORTING in told) is exports
        assert "capturing and verifying batch size 4" in told
        model.close()


def only_when_unwatched(x: Tensor) -> Tensor:
    if torch.utils._python_dispatch._get_current_dispatch_mode():
        raise RuntimeError("watched")
    return torch.relu(x)


def test_without_a_look_at_its_calls_a_module_has_no_plan_but_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = Function(only_when_unwatched)
    model = compiled(module, cache_dir=tmp_path)
    assert "small: no plan is kept: watched" in caplog.text
    assert not list(tmp_path.iterdir())
    assert_right(model, module)
    model.close()


def test_where_the_best_is_wrong_another_policy_s_graph_of_the_same_operators_serves() -> None:
    module = Branches()
    device = ScriptedDevice(streams_are_fast)
    serving: list[int] = []

    def first_that_serves_is_wrong(streams: int) -> Spoil:
        serving.extend([streams] * (streams > 1 and any(graph.closed for graph in device.graphs)))
        return wrong if len(serving) == 1 else nothing

    device.spoil = first_that_serves_is_wrong
    model = compiled(module, device=device, batch_sizes=(4,))
    bucket = model.plan.bucket(4)
    (refused,) = [c for c in bucket.candidates if c.rejected]
    assert refused.rejected == "wrong numbers"
    assert bucket.streams > 1
    assert bucket.lowering == refused.lowering
    assert bucket.policy != refused.policy
    assert_right(model, module)
    model.close()


def test_what_is_slower_when_it_serves_gives_way() -> None:
    device = ScriptedDevice()
    # fast while candidates are compared, whose graphs are closed then; slow as the graph that is to serve
    device.microseconds = lambda streams, _: (
        100.0 if streams == 1 else 150.0 if any(g.closed for g in device.graphs) else 50.0
    )
    module = Branches()
    model = compiled(module, device=device, batch_sizes=(4,))
    (bucket,) = model.plan.buckets
    assert bucket.policy == "sequential"
    assert "slower than sequential when measured again" in {c.rejected for c in bucket.candidates}
    assert_right(model, module)
    model.close()


def test_a_schedule_with_wrong_numbers_gives_way_to_sequential(caplog: pytest.LogCaptureFixture) -> None:
    module = Branches()
    device = ScriptedDevice(streams_are_fast, spoil=on_several_streams)
    model = compiled(module, device=device)
    assert_right(model, module)
    for bucket in model.plan.buckets:
        assert (bucket.policy, bucket.streams, bucket.speedup) == ("sequential", 1, 1.0)
        refused = [c for c in bucket.candidates if c.rejected]
        assert [(c.rejected, c.streams > 1) for c in refused] == [("wrong numbers", True)] * 2
    assert "failed, the next best runs instead: output 'output': error" in caplog.text
    serving = [model.graph(bucket) for bucket in model.buckets]
    assert [graph.closed for graph in device.graphs] == [graph not in serving for graph in device.graphs]
    model.close()


def test_wrong_sequential_numbers_fail_the_load() -> None:
    device = ScriptedDevice(streams_are_fast, spoil=lambda _streams: wrong)
    with pytest.raises(VerificationError, match="output 'output': error"):
        compiled(Branches(), device=device)
    assert device.closed
    assert all(graph.closed for graph in device.graphs)


def test_a_graph_that_cannot_be_captured_fails_the_load() -> None:
    device = ScriptedDevice(refused=(1,))
    with pytest.raises(CaptureError):
        compiled(Branches(), device=device)
    assert device.closed


def with_a_branch_on_data(x: Tensor) -> Tensor:
    if x.abs().sum() >= 0:  # it always is, but who can know
        return x + 1
    return x - 1


def with_a_mask(x: Tensor) -> Tensor:
    return x + 0 * x[x > 0].sum()


def by_way_of_a_sparse_tensor(x: Tensor) -> Tensor:
    return torch.mm(x.to_sparse(), torch.ones(8, 3))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (with_a_branch_on_data, "if x.abs().sum() >= 0:"),
        (with_a_mask, "aten.index.Tensor makes a number or a shape of data"),
        (by_way_of_a_sparse_tensor, "makes a sparse_coo tensor"),
    ],
)
def test_what_cannot_be_taken_apart_runs_whole(function: Any, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    module = Function(function)
    model = compiled(module)
    assert_right(model, module)
    assert reason in model.plan.fallback_reason
    assert f"small runs as one sequential graph: {model.plan.fallback_reason}" in caplog.text
    for bucket in model.plan.buckets:
        assert (bucket.lowering, bucket.operators, bucket.policy) == ("whole", 1, "sequential")
        assert len(bucket.candidates) == 1
    model.close()


def as_wide_as_data_says(x: Tensor) -> Tensor:
    return x[:, :2] if x[0, 0] < 1000 else x[:, :1]


def test_answers_of_another_shape_are_an_error_and_not_broadcast() -> None:
    model = compiled(Function(as_wide_as_data_says), batch_sizes=(4,))
    assert model.plan.buckets[0].lowering == "whole"
    graph = model.graph(4)
    with model.device.bind():
        graph.inputs[0].fill_(2000.0)
        with pytest.raises(ModelError, match=r"shapes \[\(4, 1\)\], not \[\(4, 2\)\]"):
            graph.replay()
    model.close()


def test_layers_of_volumes_beside_those_of_images() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 3, (1, 3, 3)))
    model = compiled(module, IMAGE, batch_sizes=(2,), channels_last=True)
    assert [w.is_contiguous(memory_format=torch.channels_last) for w in module.parameters() if w.dim() == 4] == [True]
    assert_right(model, module)
    model.close()


def whole_with_aliases(x: Tensor) -> tuple[Tensor, ...]:
    assert x.sum() != 7  # not to be taken apart
    return x, x[:, :2], x[:, :1].exp().expand(-1, 3), x + 1


def test_whole_outputs_lie_in_storages_of_their_own() -> None:
    module = Function(whole_with_aliases)
    model = compiled(module, batch_sizes=(4,))
    assert model.plan.buckets[0].lowering == "whole"
    assert_right(model, module)
    graph = model.graph(4)
    storages = [tensor.untyped_storage().data_ptr() for tensor in (*graph.inputs, *graph.outputs)]
    assert len(set(storages)) == 5
    model.close()


class CountsUp(nn.Module):
    """Writes to its input, so that a second run on the same tensor would leave the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.eval()

    def forward(self, ids: Tensor) -> Tensor:
        ids += 1
        result: Tensor = self.table(ids).mean(1)
        return result


class CountsUpUntraceably(CountsUp):
    def forward(self, ids: Tensor) -> Tensor:
        assert ids.sum() >= 0  # not to be taken apart
        return super().forward(ids)


@pytest.mark.parametrize("build", [CountsUp, CountsUpUntraceably])
def test_every_run_starts_from_the_inputs_that_were_copied_in(build: type[nn.Module]) -> None:
    module, ids = build(), TensorSpec("ids", "int64", (3,), 0, 10)
    model = compile_model("counts", module, [ids], "cpu", TWO_BUCKETS)
    graph = model.graph(4)
    with model.device.bind():
        given = graph.inputs[0].clone()
        for _ in range(20):
            graph.replay()
            assert torch.equal(graph.outputs[0], module(given.clone()))
    model.close()


def test_batch_of_one_may_be_special() -> None:
    module = Function(lambda x: x * 2 if x.shape[0] == 1 else (x + x) * 1)
    model = compiled(module)
    assert [b.operators for b in model.plan.buckets] == [1, 2]
    assert_right(model, module)
    assert model.plan.fallback_reason == ""
    model.close()


class NormsByBatch(nn.Module):
    """Updates its statistics although it is in eval mode; neither schema nor version counter tells."""

    running_mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(8))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.running_mean, torch.ones(8), training=True)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Counter(), "writes to 'calls'"),
        (NormsByBatch(), "writes to 'running_mean'"),
        (Function(lambda x: x - x.mean(0)), "of a row changes with the other rows"),
        (Function(lambda x: x.cumsum(0)), "of a row changes with the other rows"),
        (Function(lambda x: torch.where(x.sum() > 0, x, -x)), "of a row changes with the other rows"),
        (Function(torch.rand_like), "of a row changes with the other rows of its batch, or at random"),
        (Function(lambda x: x * 2 if x.shape[0] < 4 else x * 3), "changes with the number of rows, at 1"),
        (Function(lambda x: x.sum()), "first dimension must count rows"),
        (Function(lambda x: (x * 2).squeeze()), "for 1 rows"),
        (Function(lambda x: x.view(4, 8) * 2), "fails on 1 random rows"),
    ],
)
def test_modules_that_cannot_be_served(module: nn.Module, message: str) -> None:
    device = ScriptedDevice()
    with pytest.raises(ModelError, match=message):
        compiled(module, device=device)
    assert device.closed


def test_what_the_caller_got_wrong() -> None:
    for sizes in ((), (0,), (4, -1)):
        with pytest.raises(ValueError, match="batch sizes must be positive"):
            BuildOptions(sizes)
    with pytest.raises(DeviceError, match="unknown device 'tpu'"):
        compile_model("small", Branches().eval(), ROW, "tpu", TWO_BUCKETS)
    with pytest.raises(ValueError, match="unknown policy 'fastest'"):
        compiled(Branches(), policy="fastest")


class Unprofiled(ScriptedDevice):
    def profile(self, program: Program) -> Profile:
        raise TuningError(f"another profiler is attached: {len(program.graph)} operators, no kernel")


def test_where_nothing_can_be_measured_operators_run_in_sequence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = Branches()
    model = compiled(module, device=Unprofiled(streams_are_fast), cache_dir=tmp_path)
    assert {bucket.policy for bucket in model.plan.buckets} == {"sequential"}
    assert "operators run in sequence: another profiler is attached" in caplog.text
    assert_right(model, module)
    model.close()
    assert list(tmp_path.iterdir()) == []
