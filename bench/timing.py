"""Timing of several systems in turns, A B C A B C, so that what drifts on a machine hits all of them alike.

A graph is timed by the device's clock. What the host drives, kernel by kernel, is not: how much of that the device
hides depends on what it has to do when the run begins. There it is the host's clock that tells what a caller sees.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from opara_server.engine.device import Device

ROUNDS = (15, 200)


class Runner(Protocol):
    """A system, ready to run again and again on static inputs."""

    @property
    def inputs(self) -> Sequence[Tensor]: ...

    @property
    def outputs(self) -> Sequence[Tensor]:
        """Of the latest run."""
        ...

    def replay(self) -> None:
        """Enqueue one run."""
        ...


@dataclass(frozen=True, slots=True)
class Timing:
    """``spread``: how uncertain the median is, as a share of it: interquartile range / sqrt(count)."""

    median_us: float
    spread: float


def device_times(runners: Sequence[Runner], device: Device, seconds: float) -> list[Timing]:
    """By the device's own clock, of runners that one call launches whole. An untimed run goes ahead of each timed one:
    it warms the caches for all alike. The device is kept busy while the CPU enqueues both, else the CPU would be timed
    as well. ``seconds``: about, per runner, of pairs of runs."""
    samples: list[list[float]] = [[] for _ in runners]
    for _ in range(_rounds(runners, device, seconds)):
        stamps = []
        for runner in runners:
            device.occupy()
            runner.replay()
            start = device.stamp()
            runner.replay()
            stamps.append((start, device.stamp()))
        device.synchronize()
        for times, (start, end) in zip(samples, stamps, strict=True):
            times.append(start.elapsed_us(end))
    return [_timing(times) for times in samples]


def host_times(runners: Sequence[Runner], device: Device, seconds: float) -> list[Timing]:
    """By the host's clock, from the call until the device is done: what a caller who waits for the answer sees."""
    samples: list[list[float]] = [[] for _ in runners]
    for _ in range(_rounds(runners, device, seconds)):
        for times, runner in zip(samples, runners, strict=True):
            runner.replay()
            device.synchronize()
            begin = time.perf_counter()
            runner.replay()
            device.synchronize()
            times.append((time.perf_counter() - begin) * 1e6)
    return [_timing(times) for times in samples]


def back_to_back(runner: Runner, device: Device, seconds: float, run_us: float) -> None:
    """Keep the device busy with one system; every 10 ms or so the host waits, or it would run far ahead."""
    together = max(1, int(10_000 / max(run_us, 1.0)))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(together):
            runner.replay()
        device.synchronize()


def seconds_of(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _rounds(runners: Sequence[Runner], device: Device, seconds: float) -> int:
    """As many as fit, judged by one that is not counted."""

    def one_round() -> None:
        for runner in runners:
            runner.replay()
            runner.replay()
        device.synchronize()

    device.synchronize()
    least, most = ROUNDS
    return min(most, max(least, int(seconds * len(runners) / max(seconds_of(one_round), 1e-9))))


def _timing(samples: Sequence[float]) -> Timing:
    first, median, third = statistics.quantiles(samples, n=4)
    return Timing(median, (third - first) / median / len(samples) ** 0.5)
