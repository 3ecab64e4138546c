"""The SM counters, on an NVML that is told what to say."""

from __future__ import annotations

from types import ModuleType
from typing import cast

import pytest

from bench.counters import Counters, Load, NoCountersError
from tests.nvml import Nvml


def counters(nvml: Nvml) -> Counters:
    return Counters(cast(ModuleType, nvml), "GPU")


def test_the_load_is_that_of_the_work() -> None:
    nvml = Nvml()
    nvml.work()
    assert counters(nvml).over(nvml.work) == Load(sm_utilisation=0.2, sm_occupancy=0.3)
    assert nvml.allocated == 0


@pytest.mark.parametrize(("nvml", "reason"), [(Nvml(missing=3), "no value"), (Nvml(broken=True), "permission denied")])
def test_no_value_is_no_zero(nvml: Nvml, reason: str) -> None:
    with pytest.raises(NoCountersError, match=reason):
        counters(nvml).over(nvml.work)
    assert nvml.allocated == 0
