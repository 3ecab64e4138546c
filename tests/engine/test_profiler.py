"""Kernels joined to operators from events by hand, and the CPU's profile of small models."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from opara_server.engine.export import export_static
from opara_server.engine.lower_aten import lower
from opara_server.engine.profile import Kernel, OperatorProfile, Profile, Roofline
from opara_server.engine.profiler import ANNOTATION, PASSES, count_flops, kernels_by_operator, profile_cpu
from opara_server.engine.program import Program
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import static_inputs
from tests.engine.models import IMAGE, TOKENS, Attention, Branches, ConvBranches
from tests.engine.programs import program_of as program_by_hand

Event = dict[str, Any]


def annotation(operator: int, start: float, duration: float, thread: int = 1) -> Event:
    name = f"{ANNOTATION}{operator}"
    return {"cat": "user_annotation", "name": name, "ts": start, "dur": duration, "tid": thread, "pid": 1}


def launch(at: float, correlation: int, thread: int = 1, category: str = "cuda_runtime") -> Event:
    args = {"correlation": correlation}
    return {"cat": category, "name": "cudaLaunchKernel", "ts": at, "dur": 1, "tid": thread, "args": args}


def kernel(correlation: int, name: str, duration: float = 5.0, category: str = "kernel", **args: Any) -> Event:
    given = {"correlation": correlation, "stream": 7, **args}
    return {"cat": category, "name": name, "ts": 1000.0 + correlation, "dur": duration, "tid": 7, "args": given}


def names(events: list[Event], count: int) -> list[list[str]]:
    return [[k.name for k in kernels] for kernels in kernels_by_operator(events, count)]


def test_several_kernels_one_and_none() -> None:
    events = [
        annotation(0, 0, 10),
        launch(2, 11),
        launch(4, 12, category="cuda_driver"),
        annotation(1, 10, 10),
        annotation(2, 20, 10),
        launch(21, 13),
        kernel(11, "pad"),
        kernel(12, "gemm"),
        kernel(13, "fill", category="gpu_memset"),
    ]
    assert names(events, 4) == [["pad", "gemm"], [], ["fill"], []]


def test_neither_order_of_events_nor_of_ids_matters() -> None:
    events = [
        launch(33, 4),
        kernel(5, "second"),
        launch(31, 5),
        kernel(4, "third"),
        kernel(99, "first"),
        annotation(1, 30, 5),
        launch(12, 99),
        annotation(0, 10, 5),
        {"ph": "M", "name": "process_name"},
    ]
    assert names(events, 2) == [["first"], ["second", "third"]]


def test_what_was_launched_outside_belongs_to_nobody() -> None:
    events = [
        annotation(0, 10, 10),
        launch(5, 1),  # before
        launch(25, 2),  # after
        launch(15, 3, thread=2),  # meanwhile, by another thread
        launch(16, 4),
        launch(17, 5),  # an event record: nothing ran on the device
        *(kernel(i, f"k{i}") for i in (1, 2, 3, 4)),
        kernel(6, "nobody launched it"),
    ]
    assert names(events, 1) == [["k4"]]


def test_annotations_of_several_threads() -> None:
    events = [
        annotation(0, 10, 10, thread=1),
        annotation(1, 12, 10, thread=2),
        launch(14, 1, thread=2),
        launch(15, 2, thread=1),
        kernel(1, "one"),
        kernel(2, "two"),
    ]
    assert names(events, 2) == [["two"], ["one"]]


def test_launches_on_the_borders_of_annotations() -> None:
    events = [annotation(0, 0, 10), annotation(1, 10, 10), launch(0, 1), launch(10, 2), launch(20, 3)]
    events += [kernel(i, f"k{i}") for i in (1, 2, 3)]
    assert names(events, 2) == [["k1"], ["k2", "k3"]]


def test_passes_give_median_durations_and_the_odd_one_out_is_left_out() -> None:
    events = []
    for number, durations in enumerate([(3.0, 10.0), (5.0, 90.0), (4.0, 11.0), (100.0,)]):
        start = 100.0 * number
        events.append(annotation(0, start, 50))
        for position, duration in enumerate(durations):
            correlation = 10 * number + position
            events += [launch(start + 1 + position, correlation), kernel(correlation, f"k{position}", duration)]
    (kernels,) = kernels_by_operator(events, 1)
    assert [(k.name, k.duration_us) for k in kernels] == [("k0", 4.0), ("k1", 11.0)]


def test_what_a_kernel_takes() -> None:
    shape: dict[str, Any] = {"grid": [4, 2, 1], "block": [128, 1, 1], "registers per thread": 40, "shared memory": 2048}
    shape["est. achieved occupancy %"] = 37
    events = [annotation(0, 0, 9), launch(1, 1), kernel(1, "gemm", 6.5, **shape)]
    (kernels,) = kernels_by_operator(events, 1)
    assert kernels == (Kernel("gemm", 6.5, (4, 2, 1), (128, 1, 1), 40, 2048, 0.37),)
    assert (kernels[0].blocks, kernels[0].threads_per_block) == (8, 128)


@pytest.fixture
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def program_of(module: torch.nn.Module, specs: tuple[TensorSpec, ...], rows: int) -> Program:
    inputs = static_inputs(specs, rows, torch.device("cpu"), channels_last=False)
    return lower(export_static(module.eval(), inputs), inputs)


@pytest.mark.usefixtures("_inference")
def test_flops_of_linear_convolution_and_attention_are_exact() -> None:
    linear = program_of(torch.nn.Linear(16, 24), (TensorSpec("x", "float32", (16,)),), rows=5)
    assert count_flops(linear) == [2 * 5 * 16 * 24]
    convolution = program_of(torch.nn.Conv2d(3, 4, 3, padding=1), IMAGE, rows=2)
    assert count_flops(convolution) == [2 * 2 * (8 * 8) * 4 * (3 * 3 * 3)]
    attention = program_of(Attention(), TOKENS, rows=2)
    by_target = dict(zip((o.target for o in attention.graph.operators), count_flops(attention), strict=True))
    assert by_target["aten.scaled_dot_product_attention.default"] == 2 * (2 * 2 * 4 * 6 * 6 * 4)
    assert by_target["aten.embedding.default"] == by_target["aten.add.Tensor"] == 0


@pytest.mark.usefixtures("_inference")
def test_the_profile_of_a_small_model() -> None:
    rows, width = 4, 8
    program = program_of(Branches(3, width), (TensorSpec("x", "float32", (width,)),), rows)
    profile = profile_cpu(program)
    assert len(profile.operators) == len(program.graph) == 3 * 2 + 2
    assert all(o.duration_us > 0 and 0 < o.footprint <= 1 and 0 <= o.demand <= 1 for o in profile.operators)
    by_name = dict(zip((o.target for o in program.graph.operators), profile.operators, strict=True))
    activation, weights = rows * width * 4, (width * width + width) * 4
    assert by_name["aten.linear.default"].bytes == 2 * activation + weights
    assert by_name["aten.relu.default"].bytes == 2 * activation
    assert by_name["aten.stack.default"].bytes == 2 * 3 * activation
    assert profile.roofline.flops_per_second > 1e8
    assert profile.roofline.bytes_per_second > 1e8


@pytest.mark.parametrize("slow", ["alone", "together"])
@pytest.mark.usefixtures("_inference")
def test_operators_are_profiled_with_the_threads_that_make_the_whole_faster(
    slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that wait for each other, as on a busy machine, are not waited for."""
    used: list[int] = []
    now = 0.0

    def operator(x: Tensor) -> Tensor:
        nonlocal now
        used.append(torch.get_num_threads())
        now += 0.2 if (used[-1] == 1) == (slow == "alone") else 0.0002
        return x + 1

    clock = SimpleNamespace(perf_counter=lambda: now, process_time=lambda: now)
    monkeypatch.setattr("opara_server.engine.profiler.time", clock)
    monkeypatch.setattr("opara_server.engine.intra_op.time", clock)
    monkeypatch.setattr("opara_server.engine.profiler._cpu_roofline", lambda: Roofline(1e9, 1e9))  # it is timed, too

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (seen,) = profile_cpu(program_by_hand((operator, [0]))).operators
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen.duration_us == pytest.approx(200.0)
    together = len(used) - used.count(1)
    assert together == (PASSES if slow == "alone" else 1)


@pytest.mark.usefixtures("_inference")
def test_profiling_changes_no_results() -> None:
    program = program_of(ConvBranches(), IMAGE, rows=2)
    before = [output.clone() for output in program.run_in_order()]
    profile_cpu(program)
    torch.testing.assert_close(list(program.run_in_order()), before)


def test_compute_or_memory_bound_by_the_roofline() -> None:
    roofline = Roofline(flops_per_second=1e12, bytes_per_second=1e11)  # turns at 10 FLOPs per byte
    operators = [OperatorProfile(1.0, flops, 100) for flops in (0, 999, 1000, 1001, 10**9)]
    profile = Profile(tuple(operators), roofline)
    assert [profile.compute_bound(i) for i in range(5)] == [False, False, False, True, True]


@pytest.mark.usefixtures("_inference")
def test_an_expanded_operand_counts_once() -> None:
    class Expanded(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1].expand(-1, 1000) + 1

    program = program_of(Expanded(), (TensorSpec("x", "float32", (2,)),), rows=3)
    assert program.traffic == (3 * 2 * 4 + 3 * 1000 * 4,)
