"""The GPU's metrics, from an NVML that is told what to say."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from opara_server.observe.devices import NvmlDevice
from opara_server.observe.gpu import GpuCollector, NoGpuMetricsError, NvmlGpu, open_gpu
from tests.nvml import UUID, Nvml

BASIC = {
    "nv_gpu_utilization": 0.75,
    "nv_gpu_memory_used_bytes": 30 * 2**30,
    "nv_gpu_memory_total_bytes": 80 * 2**30,
    "nv_gpu_power_usage": 350.5,
}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def gpu(nvml: Nvml, *, hopper: bool = True) -> NvmlGpu:
    return NvmlGpu(NvmlDevice(UUID, "GPU", "GPU"), cast(ModuleType, nvml), [[], []] if hopper else [])


def exposed(collector: GpuCollector, uuid: str = UUID) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(collector)
    samples = [sample for family in registry.collect() for sample in family.samples]
    assert all(sample.labels == {"gpu_uuid": uuid} for sample in samples)
    return {sample.name: sample.value for sample in samples}


def test_shares_of_multiprocessors_are_those_since_the_reading_before() -> None:
    nvml, clock = Nvml(), Clock()
    collector = GpuCollector(lambda: UUID, lambda _uuid: gpu(nvml), now=clock)
    assert exposed(collector) == BASIC  # one sample says nothing
    nvml.work()
    clock.now = 5.0
    counted = {"opara_gpu_sm_utilization_ratio": 0.2, "opara_gpu_sm_occupancy_ratio": 0.3}
    assert exposed(collector) == BASIC | counted
    nvml.work()
    nvml.work()
    clock.now = 5.5
    assert exposed(collector) == BASIC | counted  # too soon to be read again
    clock.now = 6.0
    assert exposed(collector)["opara_gpu_sm_occupancy_ratio"] == 0.6


@pytest.mark.parametrize(
    ("nvml", "hopper", "absent"),
    [
        (Nvml(), False, {"opara_gpu_sm_utilization_ratio", "opara_gpu_sm_occupancy_ratio"}),
        (Nvml(missing=3), True, {"opara_gpu_sm_occupancy_ratio"}),
        (Nvml(has_power=False), True, {"nv_gpu_power_usage"}),
    ],
)
def test_what_a_gpu_does_not_tell_is_absent(nvml: Nvml, hopper: bool, absent: set[str]) -> None:
    opened = gpu(nvml, hopper=hopper)
    opened.read()
    nvml.work()
    full = {*BASIC, "opara_gpu_sm_utilization_ratio", "opara_gpu_sm_occupancy_ratio"}
    assert {metric.name for metric in opened.read()} == full - absent


def test_it_waits_for_a_gpu_and_gives_up_on_one_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    uuid: list[str | None] = [None]
    tries = []

    def find(uuid: str) -> NvmlGpu:
        tries.append(uuid)
        raise NoGpuMetricsError("no driver")

    collector = GpuCollector(lambda: uuid[0], find)
    assert (exposed(collector), tries) == ({}, [])
    uuid[0] = UUID
    for _ in range(2):
        assert exposed(collector) == {}
    assert (tries, caplog.messages) == ([UUID], ["no driver"])


Installed = Callable[[Nvml, str], None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Makes an NVML the machine's, and sets CUDA_VISIBLE_DEVICES."""

    def install(nvml: Nvml, visible: str) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return install


@pytest.mark.parametrize("visible", ["", "0", "2,0", "GPU-7", "GPU-7,GPU-8"])
@pytest.mark.parametrize("has_mig", [False, True])
def test_a_whole_gpu_is_the_one_that_cuda_says(visible: str, has_mig: bool, installed: Installed) -> None:
    nvml = Nvml(has_mig=has_mig)
    installed(nvml, visible)
    collector = GpuCollector(lambda: UUID, every_s=0.0)
    exposed(collector)
    nvml.work()
    counted = {"opara_gpu_sm_utilization_ratio": 0.2, "opara_gpu_sm_occupancy_ratio": 0.3}
    assert exposed(collector) == BASIC | counted


SLICES = {"MIG-a": -1, "MIG-b": 2, "MIG-c": 5}  # the first is another container's


@pytest.mark.parametrize(
    ("said", "visible", "found"),
    [
        ("GPU-b", "", "MIG-b"),  # CUDA says the slice's UUID,
        ("GPU-c", "0", "MIG-c"),
        ("GPU-c", "MIG-c", "MIG-c"),
        (UUID, "", "MIG-b"),  # or its GPU's
        (UUID, "0", "MIG-b"),
        (UUID, UUID, "MIG-b"),
        (UUID, "MIG-c", "MIG-c"),
        (UUID, "MIG-c,MIG-b", "MIG-c"),
        (UUID, f"MIG-{UUID}/5/0", "MIG-c"),
    ],
)
def test_a_slice_has_memory_and_multiprocessors_of_its_own(
    said: str, visible: str, found: str, installed: Installed
) -> None:
    nvml = Nvml(slices=SLICES)
    installed(nvml, visible)
    collector = GpuCollector(lambda: said, every_s=0.0)
    exposed(collector, found)
    nvml.work()
    instance = SLICES[found]
    assert exposed(collector, found) == pytest.approx(
        {
            "nv_gpu_memory_used_bytes": instance * 2**30,
            "nv_gpu_memory_total_bytes": 10 * 2**30,
            "opara_gpu_sm_utilization_ratio": 0.2 * instance,
            "opara_gpu_sm_occupancy_ratio": 0.3 * instance,
        }
    )


@pytest.mark.parametrize(
    ("nvml", "said", "why"),
    [
        (Nvml(slices={"MIG-a": -1}), UUID, "none of its slices can be seen"),
        (Nvml(), "GPU-8", "not found"),
    ],
)
def test_a_device_that_nvml_does_not_have_is_told(nvml: Nvml, said: str, why: str, installed: Installed) -> None:
    installed(nvml, "")
    with pytest.raises(NoGpuMetricsError, match=why):
        open_gpu(said)
