"""Of graphs the device is timed, never the CPU; of what the host drives what a caller sees, whoever else is timed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from bench.timing import device_times, host_times
from opara_server.engine.device_cpu import CpuDevice, CpuStamp

ENQUEUE_US = 30.0  # what this CPU takes for a launch, and for a stamp
OCCUPIED_US = 200.0


@dataclass
class SlowHost(CpuDevice):
    """A device that works through a queue, which a CPU fills that is not that fast, with clocks of their own."""

    host_us: float = 0.0
    done_us: float = 0.0
    work_us: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(threads=1)

    def enqueue(self, work_us: float) -> None:
        self.host_us += ENQUEUE_US
        self.done_us = max(self.done_us, self.host_us) + work_us
        self.work_us.append(work_us)

    def stamp(self) -> CpuStamp:
        self.enqueue(0.0)
        return CpuStamp(self.done_us / 1e6)

    def occupy(self) -> None:
        self.enqueue(OCCUPIED_US)

    def synchronize(self) -> None:
        self.host_us = self.done_us = max(self.done_us, self.host_us)

    def clock(self) -> float:
        return self.host_us / 1e6


@dataclass
class Run:
    """``launches`` calls of the host, each of which has the device work for ``work_us``: one for a graph."""

    device: SlowHost
    work_us: float
    launches: int = 1
    inputs: tuple[()] = ()
    outputs: tuple[()] = ()

    def replay(self) -> None:
        for _ in range(self.launches):
            self.device.enqueue(self.work_us)


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
