"""The cost of metrics, from slices with and without."""

from __future__ import annotations

from collections.abc import Sequence

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


def test_slices_in_which_the_machine_stood_still_say_no_more_than_others() -> None:
    def lost(rates: Sequence[int]) -> object:
        pairs = [(Slice(True, rate, 1.0, 1.0), Slice(False, 1000, 1.0, 1.0)) for rate in rates]
        return summary([one for pair in pairs for one in pair], scrape_s=0.0)["throughput lost"]

    steady = lost(range(960, 1040))
    assert steady == {"median": pytest.approx(0.0005), "standard error": pytest.approx(0.0044, abs=2e-4)}
    assert lost([60] * 4 + [*range(964, 1040)]) == steady
