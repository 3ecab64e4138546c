"""Kernels that start early on the GPU: right, whatever comes before them; wrong without their waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from opara_server.engine.capture import capture
from opara_server.engine.device import Device
from opara_server.engine.early_start import may_start_early
from opara_server.engine.export import export_static
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.kernel import POINTER, KernelCode, KernelLaunch
from opara_server.engine.lower_fused import EARLY, REWRITTEN, VARIANTS, Variant, lower_fused
from opara_server.engine.policies import make_schedule
from opara_server.engine.rewrites import Weights
from opara_server.engine.tensors import fill_random, static_inputs
from opara_server.engine.verify import poison
from tests.gpu.answers import agreeing
from tests.gpu.nets import NETS, make

GPU = torch.device("cuda")
BLOCK = 128
SIZE = 8 * BLOCK
TURNS = 200  # some 10 µs
REPLAYS = 100

Launch = Callable[[Tensor, Tensor], None]


@pytest.fixture(autouse=True)
def hopper() -> Iterator[None]:
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("kernels start early from compute capability 9 on")
    with torch.inference_mode():
        yield


def compiled(kernel: Any) -> Any:
    """With its machine code, after one run."""
    return kernel[(1,)](torch.zeros(BLOCK, device=GPU), torch.zeros(BLOCK, device=GPU), TURNS, BLOCK=BLOCK)


def early(kernel: Any) -> Launch:
    """Adds one, as a kernel that is started early, be that right or not."""
    built = compiled(kernel)
    code = KernelCode(built.metadata.name, built.asm["cubin"], 32 * built.metadata.num_warps, built.metadata.shared)
    types = (POINTER, POINTER, "i32", POINTER, POINTER)
    launch = KernelLaunch(code, (SIZE // BLOCK, 1, 1), types, early=True)
    return lambda x, out: launch(x, out, TURNS, None, None)


def wrong_replays(run: Callable[[Tensor], Tensor], adds: int) -> int:
    """Of a graph of ``run``: those that do not add ``adds`` to a fresh input."""
    x = torch.zeros(SIZE, device=GPU)
    run(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x)
    wrong = 0
    for number in range(REPLAYS):
        x.fill_(17 * number)  # far from the last replay's
        graph.replay()
        wrong += not bool((out == 17 * number + adds).all())
    return wrong


def chained(add: Launch) -> Callable[[Tensor], Tensor]:
    """Twelve in a row; two buffers in turns, so that each overwrites what the one before it has read."""
    buffers = [torch.zeros(SIZE, device=GPU) for _ in range(2)]

    def run(x: Tensor) -> Tensor:
        for number in range(12):
            add(x, buffers[number % 2])
            x = buffers[number % 2]
        return x

    return run


def crossing(add: Launch) -> Callable[[Tensor], Tensor]:
    """Three streams, which fork after an early kernel and join before one; a copy and a matrix product in between.
    Buffers are overwritten by one stream when another's kernels have read them. Three times x, and 13."""
    a, b, c, d, total = (torch.zeros(SIZE, device=GPU) for _ in range(5))
    others = [torch.cuda.Stream() for _ in range(2)]
    identity = torch.eye(BLOCK, device=GPU)

    def run(x: Tensor) -> Tensor:
        main = torch.cuda.current_stream()
        add(x, a)  # 1
        add(a, b)  # 2
        for stream, to in zip(others, (c, d), strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                add(a, to)  # 2, of what was made before the kernel that it waits for
                add(to, to)  # 3
        add(b, b)  # 3
        for stream in others:
            main.wait_stream(stream)
        add(b, a)  # 4, where the other streams have read
        torch.mm(a.view(-1, BLOCK), identity, out=b.view(-1, BLOCK))
        add(b, total)  # 5
        b.copy_(total)
        add(b, a)  # 6
        torch.add(a, c, out=total)
        total.add_(d)  # 12
        add(total, b)
        return b

    return run


@pytest.mark.parametrize(("path", "adds", "factor"), [(chained, 12, 1), (crossing, 13, 3)])
def test_early_kernels_that_wait_first_compute_what_others_do(
    path: Callable[[Launch], Callable[[Tensor], Tensor]], adds: int, factor: int
) -> None:
    from tests.gpu.early_kernels import waiting_kernel  # noqa: PLC0415 - on machines with Triton only

    assert may_start_early(compiled(waiting_kernel).asm["ptx"])
    run = path(early(waiting_kernel))
    assert wrong_replays(lambda x: run(x) - (factor - 1) * x, adds) == 0


def test_without_the_wait_they_do_not() -> None:
    from tests.gpu.early_kernels import hasty_kernel  # noqa: PLC0415

    assert not may_start_early(compiled(hasty_kernel).asm["ptx"])
    assert wrong_replays(chained(early(hasty_kernel)), 12) > REPLAYS / 2


OWN = ("attention_kernel", "depthwise_kernel")  # of this engine, which wait for all ahead of them


@pytest.mark.parametrize("name", NETS)
def test_fused_kernels_start_early(name: str, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "fused", Variant(REWRITTEN, EARLY))
    module, specs = make(name)
    flat = FlatModule(module, specs, 3, GPU, channels_last=False)
    inputs = static_inputs(specs, 3, GPU, channels_last=False)
    program = lower_fused(export_static(module, inputs), inputs, "fused", Weights())
    launches = [call.target for body in program.bodies for call in body if isinstance(call.target, KernelLaunch)]
    kernels = [kernel for kernel in launches if kernel.code.name not in OWN]
    assert kernels
    assert sum(not kernel.early for kernel in kernels) <= 1  # an embedding may check its indices first
    for policy in ("sequential", "opara", "critical_path"):
        graph = capture(program, make_schedule(program.graph, device.profile(program), policy), device)
        with agreeing() as agree:
            for _ in range(REPLAYS):
                fill_random(graph.inputs, flat.inputs)
                expected = flat(*[tensor.clone() for tensor in graph.inputs])
                poison((*graph.outputs, graph.arena))
                graph.replay()
                device.synchronize()
                agree(graph.outputs, expected)
        graph.close()
