"""The GPU that the models run on, as NVML sees it: read when Prometheus asks, on its thread, once a second at most.

What a GPU or its driver does not tell (SM counters before Hopper, power in some virtual machines, utilisation and power
of a MIG slice) is absent, not zero.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from types import ModuleType
from typing import Any, Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from opara_server.observe.declared import Declared
from opara_server.observe.devices import NoGpuMetricsError, NvmlDevice, find_device

__all__ = ["GpuCollector", "NoGpuMetricsError", "NvmlGpu", "gpm_shares", "has_gpm", "open_gpu"]

log = logging.getLogger(__name__)

LABELS = ("gpu_uuid",)
UTILISATION = Declared("nv_gpu_utilization", "gauge", "Share of the time in which any kernel ran, by NVML.", LABELS)
MEMORY_USED = Declared("nv_gpu_memory_used_bytes", "gauge", "Memory in use, of all processes.", LABELS)
MEMORY_TOTAL = Declared("nv_gpu_memory_total_bytes", "gauge", "Memory of the GPU.", LABELS)
POWER = Declared("nv_gpu_power_usage", "gauge", "Watts.", LABELS)
SM_UTILISATION = Declared(
    "opara_gpu_sm_utilization_ratio", "gauge", "Multiprocessors with work, mean since the reading before.", LABELS
)
SM_OCCUPANCY = Declared(
    "opara_gpu_sm_occupancy_ratio", "gauge", "Resident warps of those possible, mean since the reading before.", LABELS
)
GPU_METRICS = (UTILISATION, MEMORY_USED, MEMORY_TOTAL, POWER, SM_UTILISATION, SM_OCCUPANCY)


class Gpu(Protocol):
    @property
    def uuid(self) -> str: ...

    def read(self) -> Mapping[Declared, float]:
        """What it tells now."""
        ...


def gpm_shares(nvml: ModuleType, before: Any, after: Any, metrics: tuple[int, ...]) -> list[float | None]:
    """Between two GPM samples, metrics that NVML gives in per cent, as shares (0..1); None: it has no value. Raises
    NVMLError."""
    request = nvml.c_nvmlGpmMetricsGet_t()
    request.version = nvml.NVML_GPM_METRICS_GET_VERSION
    request.sample1, request.sample2 = before, after
    request.numMetrics = len(metrics)
    for number, metric in enumerate(metrics):
        request.metrics[number].metricId = metric
    nvml.nvmlGpmMetricsGet(request)
    found = [request.metrics[number] for number in range(len(metrics))]
    return [metric.value / 100 if metric.nvmlReturn == nvml.NVML_SUCCESS else None for metric in found]


@dataclass
class NvmlGpu:
    """``nvml``: the module pynvml; ``device``: the GPU in it, or its slice; ``samples``: two of GPM, empty before
    Hopper. Not for several threads at once."""

    device: NvmlDevice
    nvml: ModuleType
    samples: list[Any] = field(default_factory=list)
    _sampled: bool = False

    @property
    def uuid(self) -> str:
        return self.device.uuid

    def read(self) -> dict[Declared, float]:
        nvml, found = self.nvml, dict[Declared, float]()
        sources: tuple[Callable[[], Mapping[Declared, float]], ...] = (
            lambda: {UTILISATION: nvml.nvmlDeviceGetUtilizationRates(self.device.handle).gpu / 100},
            self._memory,
            lambda: {POWER: nvml.nvmlDeviceGetPowerUsage(self.device.handle) / 1e3},  # it counts milliwatts
            self._multiprocessors,
        )
        for source in sources:
            try:
                found |= source()
            except nvml.NVMLError as error:
                log.debug("NVML: %s", error, extra={"gpu": self.uuid})
        return found

    def _memory(self) -> dict[Declared, float]:
        memory = self.nvml.nvmlDeviceGetMemoryInfo(self.device.handle)
        return {MEMORY_USED: memory.used, MEMORY_TOTAL: memory.total}

    def _multiprocessors(self) -> dict[Declared, float]:
        """Between the sample of the last call and one of now: nothing at the first."""
        if not self.samples:
            return {}
        before, after = self.samples
        if self.device.instance is None:
            self.nvml.nvmlGpmSampleGet(self.device.gpu, after)
        else:
            self.nvml.nvmlGpmMigSampleGet(self.device.gpu, self.device.instance, after)
        self.samples, known = [after, before], self._sampled
        self._sampled = True
        if not known:
            return {}
        wanted = (self.nvml.NVML_GPM_METRIC_SM_UTIL, self.nvml.NVML_GPM_METRIC_SM_OCCUPANCY)
        shares = gpm_shares(self.nvml, before, after, wanted)
        return {m: share for m, share in zip((SM_UTILISATION, SM_OCCUPANCY), shares, strict=True) if share is not None}


def open_gpu(uuid: str) -> NvmlGpu:
    """The GPU, or the slice of one, that is CUDA's first: ``uuid``: ``GPU-`` and what CUDA says. Raises
    NoGpuMetricsError."""
    try:
        import pynvml  # noqa: PLC0415 - of the extra gpu
    except ImportError as error:
        raise NoGpuMetricsError("metrics of the GPU need: pip install 'opara-serve[gpu]'") from error
    try:
        pynvml.nvmlInit()
        device = find_device(pynvml, uuid, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        has_counters = has_gpm(pynvml, device.gpu)
        return NvmlGpu(device, pynvml, [pynvml.nvmlGpmSampleAlloc() for _ in range(2)] if has_counters else [])
    except pynvml.NVMLError as error:
        raise NoGpuMetricsError(f"no metrics of the GPU: {error}") from error


def has_gpm(nvml: ModuleType, handle: Any) -> bool:
    """Whether the GPU has counters of its multiprocessors, and the driver gives them."""
    try:
        return bool(nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice)
    except nvml.NVMLError as error:
        log.info("no SM counters: %s", error)
        return False


class GpuCollector(Collector):
    """``uuid``: of the GPU in use, None while none is; ``find``: opens it, once."""

    def __init__(
        self,
        uuid: Callable[[], str | None],
        find: Callable[[str], Gpu] = open_gpu,
        every_s: float = 1.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._uuid, self._find, self._every_s, self._now = uuid, find, every_s, now
        self._lock = threading.Lock()  # scrapes may overlap
        self._gpu: Gpu | None = None
        self._failed = False
        self._read: Mapping[Declared, float] = {}
        self._read_at = -inf

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self._lock:
            gpu = self._gpu = self._gpu or self._opened()
            if gpu is None:
                return
            if self._now() - self._read_at >= self._every_s:
                self._read, self._read_at = gpu.read(), self._now()
            values = self._read
        for metric, value in values.items():
            family = GaugeMetricFamily(metric.name, metric.text, labels=metric.labels)
            family.add_metric([gpu.uuid], value)
            yield family

    def _opened(self) -> Gpu | None:
        uuid = None if self._failed else self._uuid()
        if uuid is None:
            return None
        try:
            return self._find(uuid)
        except NoGpuMetricsError as error:
            self._failed = True
            log.warning("%s", error, extra={"gpu": uuid})
            return None
