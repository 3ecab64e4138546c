"""A device whose work takes the time it is told to take, by a clock of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

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
