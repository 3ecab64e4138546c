"""Of graphs the device is timed, never the CPU; of what the host drives what a caller sees, whoever else is timed."""

from __future__ import annotations

import pytest

from bench.timing import device_times, host_times
from tests.bench.slow_host import ENQUEUE_US, OCCUPIED_US, Run, SlowHost


@pytest.mark.parametrize("work_us", [10.0, 15.0, 30.0, 1000.0])
def test_the_device_is_timed_and_not_the_cpu(work_us: float) -> None:
    device = SlowHost()
    timing, long = device_times([Run(device, work_us), Run(device, 500.0)], device, 0.0)
    assert timing.median_us == pytest.approx(work_us, rel=0.01)
    assert timing.spread == pytest.approx(0, abs=1e-6)
    assert long.median_us == pytest.approx(500.0)


def test_one_run_goes_ahead_of_each_that_is_timed() -> None:
    device = SlowHost()
    device_times([Run(device, 20.0)], device, 0.0)
    assert device.work_us[-15 * 5 :] == [OCCUPIED_US, 20.0, 0.0, 20.0, 0.0] * 15


@pytest.mark.parametrize("neighbour_us", [20.0, 20_000.0])
@pytest.mark.parametrize(("work_us", "seen_us"), [(10.0, 100 * ENQUEUE_US + 10.0), (50.0, ENQUEUE_US + 100 * 50.0)])
def test_what_the_host_drives_takes_what_a_caller_sees_beside_any_neighbour(
    monkeypatch: pytest.MonkeyPatch, neighbour_us: float, work_us: float, seen_us: float
) -> None:
    device = SlowHost()
    monkeypatch.setattr("bench.timing.time.perf_counter", device.clock)
    graph, eager = Run(device, neighbour_us), Run(device, work_us, launches=100)
    timed = host_times([graph, eager], device, 0.0)
    assert timed[1].median_us == pytest.approx(seen_us)
    assert timed[0].median_us == pytest.approx(ENQUEUE_US + neighbour_us)


def test_by_the_device_it_would_depend_on_its_neighbours() -> None:
    found = []
    for neighbour_us in (20.0, 20_000.0):
        device = SlowHost()
        runs = [Run(device, neighbour_us), Run(device, 10.0, launches=100)]
        found.append(device_times(runs, device, 0.0)[1].median_us)
    assert found[0] > 2 * found[1], "hidden behind a long queue, which is why it is not timed that way"
