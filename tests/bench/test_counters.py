"""The SM counters, on an NVML that is told what to say."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import cast

import pytest

from bench.counters import Counters, Load, NoCountersError


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
    """A sample is the time it was taken at; a metric grows by its id in a unit of time. ``missing``: has no value."""

    missing: int = 0
    broken: bool = False
    now: int = 0
    allocated: int = 0

    NVMLError = NvmlError
    NVML_SUCCESS = 0
    NVML_GPM_METRICS_GET_VERSION = 1
    NVML_GPM_METRIC_SM_UTIL = 2
    NVML_GPM_METRIC_SM_OCCUPANCY = 3
    c_nvmlGpmMetricsGet_t = Request  # noqa: N815

    def nvmlGpmSampleAlloc(self) -> list[int]:  # noqa: N802
        self.allocated += 1
        return []

    def nvmlGpmSampleFree(self, _sample: list[int]) -> None:  # noqa: N802
        self.allocated -= 1

    def nvmlGpmSampleGet(self, handle: str, sample: list[int]) -> None:  # noqa: N802
        assert handle == "GPU"
        if self.broken:
            raise NvmlError("permission denied")
        sample.append(self.now)

    def nvmlGpmMetricsGet(self, request: Request) -> None:  # noqa: N802
        for metric in request.metrics[: request.numMetrics]:
            metric.value = metric.metricId * (request.sample2[0] - request.sample1[0])
            metric.nvmlReturn = int(metric.metricId == self.missing)

    def work(self) -> None:
        self.now += 10


def counters(nvml: Nvml) -> Counters:
    return Counters(cast(ModuleType, nvml), "GPU")


def test_the_load_is_that_of_the_work() -> None:
    nvml = Nvml()
    nvml.work()
    assert counters(nvml).over(nvml.work) == Load(sm_utilisation=0.2, sm_occupancy=0.3)
    assert nvml.allocated == 0


@pytest.mark.parametrize(("nvml", "reason"), [(Nvml(missing=3), "metric 3"), (Nvml(broken=True), "permission denied")])
def test_no_value_is_no_zero(nvml: Nvml, reason: str) -> None:
    with pytest.raises(NoCountersError, match=reason):
        counters(nvml).over(nvml.work)
    assert nvml.allocated == 0
