"""How busy the multiprocessors of a GPU are, by NVML's GPM counters (Hopper and later, no privileges needed).

The classic utilisation that `nvidia-smi` shows counts the time in which any kernel runs at all: 90 % and more where the
multiprocessors are idle for most of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch


class NoCountersError(Exception):
    """Why the counters cannot be read."""


@dataclass(frozen=True)
class Load:
    """Shares (0..1): of multiprocessors with work, and of warps that could be resident."""

    sm_utilisation: float
    sm_occupancy: float


@dataclass(frozen=True)
class Counters:
    """Of one GPU. ``nvml``: the module pynvml; ``handle``: the GPU in it."""

    nvml: ModuleType
    handle: Any

    def over(self, work: Callable[[], object]) -> Load:
        """The means while ``work`` runs, which must keep the GPU busy for 0.1 s or more. Raises NoCountersError."""
        nvml = self.nvml
        before, after = nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()
        try:
            nvml.nvmlGpmSampleGet(self.handle, before)
            work()
            nvml.nvmlGpmSampleGet(self.handle, after)
            return Load(*self._between(before, after, nvml.NVML_GPM_METRIC_SM_UTIL, nvml.NVML_GPM_METRIC_SM_OCCUPANCY))
        except nvml.NVMLError as error:
            raise NoCountersError(f"no GPM counters: {error}") from error
        finally:
            nvml.nvmlGpmSampleFree(before)
            nvml.nvmlGpmSampleFree(after)

    def _between(self, before: Any, after: Any, *wanted: int) -> list[float]:
        """Metrics that NVML gives in per cent, as shares."""
        request = self.nvml.c_nvmlGpmMetricsGet_t()
        request.version = self.nvml.NVML_GPM_METRICS_GET_VERSION
        request.sample1, request.sample2 = before, after
        request.numMetrics = len(wanted)
        for number, metric in enumerate(wanted):
            request.metrics[number].metricId = metric
        self.nvml.nvmlGpmMetricsGet(request)
        found = [request.metrics[number] for number in range(len(wanted))]
        if failed := [metric.metricId for metric in found if metric.nvmlReturn != self.nvml.NVML_SUCCESS]:
            raise NoCountersError(f"no GPM counters: NVML has no value for metric {failed[0]}")
        return [metric.value / 100 for metric in found]


def open_counters() -> Counters:
    """Of the current GPU. Raises NoCountersError where it has none, or the package nvidia-ml-py is missing."""
    try:
        import pynvml  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise NoCountersError("GPM counters need: pip install 'opara-serve[bench]'") from error
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        supported = bool(pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice)
    except pynvml.NVMLError as error:
        raise NoCountersError(f"no GPM counters: {error}") from error
    if not supported:
        raise NoCountersError("no GPM counters: this GPU has none")
    return Counters(pynvml, handle)
