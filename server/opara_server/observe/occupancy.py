"""Stream occupancy, measured: traces of real replays, as metrics, and the last of each batch size to look at."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from opara_server.engine.device import CapturedGraph
from opara_server.engine.errors import EngineError
from opara_server.engine.plan import BucketPlan
from opara_server.engine.trace import Interval, Occupancy, occupancy
from opara_server.observe.metrics import Metrics

log = logging.getLogger(__name__)

REPLAYS = 10  # at most, at a time
LONGEST_S = 0.05  # that these may take together, unless one takes longer: requests wait meanwhile
MOST_SHOWN = 2000  # intervals of a timeline
LONGEST_NAME = 100  # characters; C++ names of kernels may be kilobytes


@dataclass(frozen=True, slots=True)
class Sample:
    """What a trace of a few replays of one batch size showed. ``timeline``: the last of them, in order of starts;
    ``omitted``: how many of its intervals are not in there. ``at``: Unix time; ``seconds``: what the trace took."""

    batch_size: int
    replays: int
    occupancy: Occupancy
    timeline: tuple[Interval, ...]
    omitted: int
    at: float
    seconds: float


class Sampler:
    """Takes samples; publishes those of what serves as metrics, and keeps the last of each batch size of each model."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last: dict[str, Mapping[int, Sample]] = {}

    def sample(self, model: str, bucket: BucketPlan, graph: CapturedGraph) -> Sample | None:
        """Take a sample of what serves, and publish it; None as of ``take``."""
        taken, known = self.take(model, bucket, graph), self.last(model)
        if taken is not None:
            self._publish(model, taken, known.get(taken.batch_size))
            self._last[model] = {**known, taken.batch_size: taken}
        return taken

    def take(self, model: str, bucket: BucketPlan, graph: CapturedGraph) -> Sample | None:
        """Trace some replays of ``graph``; None where the machine does not let us, of which the log tells: it still
        serves. On the thread that owns the device, bound to it, while no batch is in the air."""
        size, begin = bucket.batch_size, time.perf_counter()
        replays = max(1, min(REPLAYS, int(LONGEST_S * 1e6 / bucket.measured_us)))
        try:
            trace = graph.trace(replays)
            seen = occupancy(trace)
        except (EngineError, RuntimeError, ValueError) as error:
            log.warning("stream occupancy cannot be measured: %s", error, extra={"model": model, "bucket": size})
            return None
        finally:
            seconds = time.perf_counter() - begin
            self._metrics.stream_sampling_seconds.labels(model).inc(seconds)
        ordered = sorted(trace.replays[-1], key=lambda interval: interval.start_us)
        shown = tuple(replace(i, name=i.name[:LONGEST_NAME]) for i in ordered[:MOST_SHOWN])
        return Sample(size, len(trace.replays), seen, shown, len(ordered) - len(shown), time.time(), seconds)

    def replace(self, model: str, samples: Sequence[Sample]) -> None:
        """From now on others serve, or none: these are all that are known of it."""
        known, self._last[model] = self.last(model), {sample.batch_size: sample for sample in samples}
        for size in known.keys() - self._last[model].keys():
            self._metrics.no_occupancy(model, size)
        for sample in samples:
            self._publish(model, sample, known.get(sample.batch_size))

    def _publish(self, model: str, sample: Sample, before: Sample | None) -> None:
        earlier = None if before is None else before.occupancy
        self._metrics.occupancy(model, sample.batch_size, sample.occupancy, sample.at, earlier)

    def last(self, model: str) -> Mapping[int, Sample]:
        """By batch size. Any thread."""
        return self._last.get(model, {})
