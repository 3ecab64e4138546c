"""An NVML that is told what to say, of one GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TypeVar

UUID = "GPU-7"
Key = TypeVar("Key")
Value = TypeVar("Value")


class NvmlError(Exception):
    pass


@dataclass
class Metric:
    metricId: int = 0  # noqa: N815 - as in NVML
    nvmlReturn: int = 0  # noqa: N815
    value: float = 0.0


@dataclass
class Request:
    version: int = 0
    numMetrics: int = 0  # noqa: N815
    sample1: list[int] = field(default_factory=list)
    sample2: list[int] = field(default_factory=list)
    metrics: list[Metric] = field(default_factory=lambda: [Metric() for _ in range(8)])


@dataclass
class Nvml:
    """A sample is the time it was taken at; a metric grows by its id in a unit of time. ``missing``: has no value.
    ``slices``: numbers of their GPU instances by UUID, in MIG mode; of those with a number below 0 another container
    has them. Time runs as many times faster in a slice."""

    missing: int = 0
    broken: bool = False
    has_power: bool = True
    has_mig: bool = True
    slices: dict[str, int] | None = None
    now: int = 0
    allocated: int = 0

    NVMLError = NvmlError
    NVML_SUCCESS = 0
    NVML_DEVICE_MIG_ENABLE = 1
    NVML_GPM_METRICS_GET_VERSION = 1
    NVML_GPM_METRIC_SM_UTIL = 2
    NVML_GPM_METRIC_SM_OCCUPANCY = 3
    c_nvmlGpmMetricsGet_t = Request  # noqa: N815

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        """Of a slice in one of two ways."""
        known = {UUID: "GPU"} | {name: name for name in self._seen()}
        known |= {f"MIG-{UUID}/{instance}/0": name for name, instance in self._seen().items()}
        return self._found(known, uuid)

    def nvmlDeviceGetUUID(self, handle: str) -> str:  # noqa: N802
        return UUID if handle == "GPU" else handle

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        assert handle == "GPU"
        if not self.has_mig:
            raise NvmlError("not supported")
        return [int(self.slices is not None), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:  # noqa: N802
        assert handle == "GPU"
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> str:  # noqa: N802
        assert handle == "GPU"
        at = {index: name for index, (name, instance) in enumerate((self.slices or {}).items()) if instance >= 0}
        return self._found(at, index)

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> str:  # noqa: N802
        self._found(self._seen(), handle)
        return "GPU"

    def nvmlDeviceGetGpuInstanceId(self, handle: str) -> int:  # noqa: N802
        return self._found(self._seen(), handle)

    def _seen(self) -> dict[str, int]:
        return {name: instance for name, instance in (self.slices or {}).items() if instance >= 0}

    def _found(self, known: dict[Key, Value], name: Key) -> Value:
        if name not in known:
            raise NvmlError("not found")
        return known[name]

    def nvmlGpmQueryDeviceSupport(self, handle: str) -> SimpleNamespace:  # noqa: N802
        assert handle == "GPU"
        return SimpleNamespace(isSupportedDevice=1)

    def nvmlGpmSampleAlloc(self) -> list[int]:  # noqa: N802
        self.allocated += 1
        return []

    def nvmlGpmSampleFree(self, _sample: list[int]) -> None:  # noqa: N802
        self.allocated -= 1

    def nvmlGpmSampleGet(self, handle: str, sample: list[int]) -> None:  # noqa: N802
        assert handle == "GPU"
        if self.broken or self.slices is not None:
            raise NvmlError("permission denied")
        sample[:] = [self.now]

    def nvmlGpmMigSampleGet(self, handle: str, instance: int, sample: list[int]) -> None:  # noqa: N802
        assert handle == "GPU"
        assert instance in self._seen().values()
        sample[:] = [self.now * instance]

    def nvmlGpmMetricsGet(self, request: Request) -> None:  # noqa: N802
        for metric in request.metrics[: request.numMetrics]:
            metric.value = metric.metricId * (request.sample2[0] - request.sample1[0])
            metric.nvmlReturn = int(metric.metricId == self.missing)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802
        if handle != "GPU":
            raise NvmlError("not supported")
        return SimpleNamespace(gpu=75, memory=10)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802
        used, total = (30, 80) if handle == "GPU" else (self._found(self._seen(), handle), 10)
        return SimpleNamespace(used=used << 30, total=total << 30)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        if not self.has_power or handle != "GPU":
            raise NvmlError("not supported")
        return 350_500

    def work(self) -> None:
        self.now += 10
