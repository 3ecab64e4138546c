"""What systems that are ready are worth: times in turns, SM counters, right or wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from bench.cells import SystemResult
from bench.counters import Load, NoCountersError, open_counters
from bench.preparing import Ready
from bench.reference import REPLAYS, Reference, Verdict, replays_for
from bench.subject import Subject
from bench.systems.system import Prepared
from bench.timing import Timing, back_to_back, device_times, host_times
from opara_server.engine.plan import SEQUENTIAL

log = logging.getLogger(__name__)

HOST_SHARE = 3  # of the time for timing graphs by the device, that by the host takes one in so many
OURS = "ours"


@dataclass(frozen=True)
class Timings:
    """By the host's clock, and by the device's: None of what the host drives."""

    host: Timing
    device: Timing | None = None

    @property
    def counts(self) -> Timing:
        return self.device or self.host


def time_all(subject: Subject, ready: Mapping[str, Ready]) -> dict[str, Timings]:
    """In turns: what is timed together can be compared."""
    if not ready:
        return {}
    graphs = {name: one.prepared.runner for name, one in ready.items() if not one.system.host_driven}
    on_device = dict(zip(graphs, device_times(list(graphs.values()), subject.device, subject.seconds), strict=True))
    host_seconds = subject.seconds / (HOST_SHARE if len(graphs) == len(ready) else 1)
    on_host = host_times([one.prepared.runner for one in ready.values()], subject.device, host_seconds)
    return {name: Timings(host, on_device.get(name)) for name, host in zip(ready, on_host, strict=True)}


def assess(
    subject: Subject, ready: Iterable[Ready], times: Mapping[str, Timings], right: Reference, counter_seconds: float
) -> dict[str, SystemResult]:
    """Counters, then verdicts, which overwrite inputs and outputs."""
    systems = list(ready)
    loads = _loads(subject, systems, times, counter_seconds)
    results = {}
    for one in systems:
        name = one.system.name
        replays = REPLAYS[-1] if name == OURS else replays_for(times[name].counts.median_us)
        verdict = right.judge(one.prepared.runner, replays, one.prepared.arena)
        results[name] = _result(subject, one, times[name], loads.get(name), verdict)
    return results


def _result(subject: Subject, one: Ready, times: Timings, load: Load | None, verdict: Verdict) -> SystemResult:
    prepared = one.prepared
    return SystemResult(
        median_us=times.device.median_us if times.device else None,
        spread=times.counts.spread,
        host_us=times.host.median_us,
        longest_path_us=prepared.longest_path_us,
        one_stream_us=one_stream_us(prepared),
        sm_utilisation=load.sm_utilisation if load else None,
        sm_occupancy=load.sm_occupancy if load else None,
        peak_bytes=prepared.peak_bytes,
        held_bytes=one.held_bytes if subject.on_cuda else None,
        tuning_seconds=one.seconds,
        streams=prepared.streams,
        policy=prepared.policy,
        lowering=prepared.lowering,
        error=verdict.error,
        verified=verdict.verified,
        candidates=prepared.candidates,
        detail="; ".join(part for part in (prepared.detail, verdict.detail) if part),
    )


def one_stream_us(prepared: Prepared) -> float | None:
    """What its operators take one after the other, where a search measured that."""
    key = (prepared.lowering, SEQUENTIAL)
    return next((c.measured_us for c in prepared.candidates if (c.lowering, c.policy) == key and c.measured_us), None)


def _loads(subject: Subject, systems: Iterable[Ready], times: Mapping[str, Timings], seconds: float) -> dict[str, Load]:
    """Empty where there are no counters."""
    if not subject.on_cuda or not seconds:
        return {}
    loads: dict[str, Load] = {}
    try:
        counters = open_counters()
        for one in systems:
            run_us = times[one.system.name].counts.median_us
            busy = partial(back_to_back, one.prepared.runner, subject.device, seconds, run_us)
            loads[one.system.name] = counters.over(busy)
    except NoCountersError as error:
        log.warning("%s", error)
    return loads
