"""NVML and GPM beside what CUDA says of the same GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from opara_server.observe.gpu import (
    GPU_METRICS,
    MEMORY_TOTAL,
    MEMORY_USED,
    POWER,
    SM_OCCUPANCY,
    SM_UTILISATION,
    NvmlGpu,
    open_gpu,
)

GIB = 2**30


@pytest.fixture
def gpu() -> NvmlGpu:
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    return open_gpu(f"GPU-{torch.cuda.get_device_properties(0).uuid}")


def multiplications(size: int, times: int) -> Callable[[], None]:
    left = torch.randn(size, size, device="cuda", dtype=torch.float16)

    def run() -> None:
        for _ in range(times):
            left @ left
        torch.cuda.synchronize()

    run()
    return run


def test_all_of_it_is_there_and_within_its_bounds(gpu: NvmlGpu) -> None:
    gpu.read()
    found = gpu.read()
    hopper = torch.cuda.get_device_capability() >= (9, 0)
    assert set(found) == (set(GPU_METRICS) if hopper else set(GPU_METRICS) - {SM_UTILISATION, SM_OCCUPANCY})
    assert all(0 <= value <= 1 for metric, value in found.items() if metric not in (MEMORY_USED, MEMORY_TOTAL, POWER))
    assert 10 < found[POWER] < 2000
    assert found[MEMORY_TOTAL] == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.1)


def test_memory_in_use_is_that_of_the_device(gpu: NvmlGpu) -> None:
    before = gpu.read()[MEMORY_USED]
    held = torch.ones(2 * GIB, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    assert gpu.read()[MEMORY_USED] - before >= 1.9 * GIB
    assert held.numel() == 2 * GIB


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="GPM is Hopper's")
def test_counters_tell_a_busy_gpu_from_one_that_is_nearly_idle(gpu: NvmlGpu) -> None:
    """One small block at a time leaves most multiprocessors without work; large products leave none."""
    large, small = multiplications(8192, 200), multiplications(16, 30_000)
    shares: dict[str, list[float]] = {"large": [], "small": []}
    for _ in range(5):  # a host that stands still between readings makes an idle GPU
        for name, work in (("large", large), ("small", small)):
            gpu.read()
            work()
            shares[name].append(gpu.read()[SM_UTILISATION])
    assert max(shares["large"]) > 0.4  # 0.56 was seen where other processes kept the host's cores busy
    assert max(shares["small"]) < 0.3
