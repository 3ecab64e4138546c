"""How busy the multiprocessors of a GPU are, by NVML's GPM counters (Hopper and later, no privileges needed).

The classic utilisation that `nvidia-smi` shows counts the time in which any kernel runs at all: 90 % and more where the
multiprocessors are idle for most of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Load:
    """Shares (0..1): of multiprocessors with work, and of warps that could be resident."""

    sm_utilisation: float
    sm_occupancy: float


class Counters:
    """Reads the current GPU's counters over a piece of work. Raises RuntimeError where there are none."""

    def __init__(self) -> None:
        try:
            import pynvml  # noqa: PLC0415 - an optional extra

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties().uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            supported = bool(pynvml.nvmlGpmQueryDeviceSupport(self._handle).isSupportedDevice)
        except Exception as error:
            raise RuntimeError(f"no GPM counters: {error}") from error
        if not supported:
            raise RuntimeError("no GPM counters: this GPU has none")
        self._nvml: Any = pynvml

    def over(self, work: Callable[[], object]) -> Load:
        """``work`` must keep the device busy for 0.1 s or more: the counters are read before and after."""
        nvml = self._nvml
        samples = [nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()]
        try:
            nvml.nvmlGpmSampleGet(self._handle, samples[0])
            work()
            nvml.nvmlGpmSampleGet(self._handle, samples[1])
            request = nvml.c_nvmlGpmMetricsGet_t()
            request.version = nvml.NVML_GPM_METRICS_GET_VERSION
            request.sample1, request.sample2 = samples
            wanted = (nvml.NVML_GPM_METRIC_SM_UTIL, nvml.NVML_GPM_METRIC_SM_OCCUPANCY)
            request.numMetrics = len(wanted)
            for number, metric in enumerate(wanted):
                request.metrics[number].metricId = metric
            nvml.nvmlGpmMetricsGet(request)
            utilisation, occupancy = (request.metrics[number].value / 100 for number in range(len(wanted)))
            return Load(utilisation, occupancy)
        finally:
            for sample in samples:
                nvml.nvmlGpmSampleFree(sample)
