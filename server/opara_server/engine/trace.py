"""What ran when, on which stream, in real replays; and how busy the streams were. No torch in here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """One kernel (on a CPU: one operator) on one stream; times in µs from the start of its replay. ``name``: the
    kernel's, or the operator's."""

    stream: int
    start_us: float
    end_us: float
    name: str = ""


@dataclass(frozen=True)
class Trace:
    """Per traced replay its intervals."""

    replays: tuple[tuple[Interval, ...], ...]


@dataclass(frozen=True)
class Occupancy:
    """Means over the traced replays. ``busy_us[k]``: time for which exactly k streams were busy, k = 0 included."""

    span_us: float  # from the first kernel's start to the last one's end
    stream_busy: Mapping[int, float]  # share of the span, per stream
    busy_us: Mapping[int, float]
    concurrency: float  # busy streams, averaged over the time when at least one was

    @property
    def streams(self) -> int:
        return len(self.stream_busy)


def occupancy(trace: Trace) -> Occupancy:
    """Raises ValueError when nothing was traced: an empty trace is a failed measurement, not an idle device."""
    replays = [replay for replay in trace.replays if replay]
    if not replays:
        raise ValueError("no kernel was traced")
    spans = sum(max(i.end_us for i in replay) - min(i.start_us for i in replay) for replay in replays)
    per_stream: dict[int, float] = defaultdict(float)
    per_count: Counter[int] = Counter()
    for replay in replays:
        merged = [i for stream in _by_stream(replay).values() for i in _merge(stream)]
        for interval in merged:
            per_stream[interval.stream] += interval.end_us - interval.start_us
        per_count.update(_time_per_count(merged))
    busy = sum(time for count, time in per_count.items() if count)
    weighted = sum(count * time for count, time in per_count.items())
    return Occupancy(
        span_us=spans / len(replays),
        stream_busy={stream: time / spans if spans else 0.0 for stream, time in sorted(per_stream.items())},
        busy_us={count: time / len(replays) for count, time in sorted(per_count.items())},
        concurrency=weighted / busy if busy else 0.0,
    )


def _by_stream(replay: Iterable[Interval]) -> dict[int, list[Interval]]:
    streams: dict[int, list[Interval]] = defaultdict(list)
    for interval in sorted(replay, key=lambda i: i.start_us):
        streams[interval.stream].append(interval)
    return streams


def _merge(ordered: list[Interval]) -> list[Interval]:
    """The union of one stream's intervals: kernels of a stream may overlap by the profiler's clock."""
    merged: list[Interval] = []
    for interval in ordered:
        if merged and interval.start_us <= merged[-1].end_us:
            last = merged[-1]
            merged[-1] = Interval(last.stream, last.start_us, max(last.end_us, interval.end_us))
        else:
            merged.append(interval)
    return merged


def _time_per_count(merged: list[Interval]) -> dict[int, float]:
    """How long exactly k streams were busy, between the first start and the last end."""
    changes = sorted([(i.start_us, 1) for i in merged] + [(i.end_us, -1) for i in merged])
    time: dict[int, float] = {0: 0.0}
    busy, previous = 0, changes[0][0]
    for at, change in changes:
        time[busy] = time.get(busy, 0.0) + at - previous
        busy, previous = busy + change, at
    return time
