"""The profiler's joins and the traces of real replays."""

from __future__ import annotations

from opara_server.engine.capture import capture
from opara_server.engine.device import Device
from opara_server.engine.policies import make_schedule
from opara_server.engine.tensors import fill_random
from opara_server.engine.trace import occupancy
from opara_server.engine.verify import error_norm
from tests.gpu.answers import BOUND
from tests.gpu.test_capture import lowered


def test_each_operator_gets_its_own_kernels(device: Device) -> None:
    _, program, _ = lowered("inceptions", 4)
    profile = device.profile(program)
    for operator, seen in zip(program.graph.operators, profile.operators, strict=True):
        assert seen.kernels, operator.name
        assert seen.duration_us > 0
        assert 0 < seen.demand <= 1
        assert 0 < seen.footprint <= 1
        names = " ".join(kernel.name for kernel in seen.kernels)
        if "relu" in operator.target:
            assert "clamp" in names or "relu" in names
        if "batch_norm" in operator.target:
            assert "batch_norm" in names or "bn" in names
    convolutions = [p for o, p in zip(program.graph.operators, profile.operators, strict=True) if "conv2d" in o.target]
    # a 3x3 convolution of 64 to 16 channels over 4 x 32 x 32 pixels
    assert 2 * 4 * 32 * 32 * 16 * 64 * 9 in [p.flops for p in convolutions]
    assert all(
        kernel.registers_per_thread > 0 for p in convolutions for kernel in p.kernels if kernel.threads_per_block > 1
    )


def test_the_roofline_is_this_gpu_s(device: Device) -> None:
    _, program, _ = lowered("attention", 2)
    roofline = device.profile(program).roofline
    assert roofline.flops_per_second > 1e13  # float16 on tensor cores: any GPU that runs these tests
    assert 1e11 < roofline.bytes_per_second < 2e13


def test_a_trace_shows_the_streams_of_the_schedule(device: Device) -> None:
    _, program, _ = lowered("inceptions", 8)
    profile = device.profile(program)
    one = occupancy(capture(program, make_schedule(program.graph, profile, "sequential"), device).trace(3))
    many = occupancy(capture(program, make_schedule(program.graph, profile, "nimble"), device).trace(3))
    assert one.streams == 1
    assert many.streams >= 3
    assert many.concurrency > one.concurrency
    assert abs(sum(many.busy_us.values()) - many.span_us) < 0.01 * many.span_us


def test_graphs_from_before_and_between_traces_keep_their_results(device: Device) -> None:
    """The profiler leaves CUDA after each trace, which crashed graphs once (pytorch/pytorch#112507)."""
    _, program, specs = lowered("inceptions", 8)
    graphs = []
    for policy in ("sequential", "nimble", "opara"):
        graphs.append(capture(program, make_schedule(program.graph, device.profile(program), policy), device))
        graphs[-1].trace(3)
        fill_random(graphs[0].inputs, specs)
        for graph in graphs:
            for static, given in zip(graph.inputs, graphs[0].inputs, strict=True):
                static.copy_(given)
            for _ in range(20):
                graph.replay()
            device.synchronize()
        for graph in graphs[1:]:
            assert error_norm(graph.outputs[0], graphs[0].outputs[0]) <= BOUND
