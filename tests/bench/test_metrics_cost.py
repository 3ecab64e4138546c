"""The cost of metrics, from slices with and without."""

from __future__ import annotations

import pytest

from bench.metrics_cost import summary
from bench.switched import Slice


def test_neighbours_are_compared_and_idle_slices_are_not() -> None:
    counted, silent = Slice(True, 970, 0.05, 0.0485), Slice(False, 1000, 0.05, 0.0485)
    idle = Slice(True, 3, 0.05, 0.001)
    found = summary([idle, silent, *[counted, silent] * 5, *[silent, counted] * 5], scrape_s=0.002)
    assert found["pairs of slices"] == 10
    assert found["throughput lost"] == {"median": pytest.approx(0.03), "standard error": 0.0}
    assert found["processor time per request added"] == {
        "median": pytest.approx(0.0309, abs=1e-4),
        "standard error": 0.0,
    }
    assert found["requests/s without"] == 20_000
    assert found["of a core's time, a scrape every 5 s"] == 0.0004
