"""What the metrics of one model add up to since the server's start, for clients that ask for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.registry import Collector

from opara_server.observe.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Total:
    """How often, and for how long in all."""

    count: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Statistics:
    """``answered``, ``failed`` and ``queued`` count requests: those that were refused, cancelled or went wrong are all
    ``failed``, and no time is kept of them. The rest counts batches; ``replays``: by bucket."""

    answered: Total
    failed: Total
    queued: Total
    copy_in: Total
    copy_out: Total
    replays: Mapping[int, Total]
    rows: int
    batches: int

    @property
    def replay(self) -> Total:
        return Total(sum(t.count for t in self.replays.values()), sum(t.seconds for t in self.replays.values()))


def statistics(metrics: Metrics, model: str) -> Statistics:
    metrics.refresh()
    codes: defaultdict[str, int] = defaultdict(int)
    for labels, value in _samples(metrics.requests, "_total", model):
        codes[labels["code"]] += int(value)
    answered = codes.pop("OK", 0)
    return Statistics(
        answered=Total(answered, _total(metrics.request_seconds, model).seconds),
        failed=Total(sum(codes.values())),
        queued=_total(metrics.queue_seconds, model),
        copy_in=_total(metrics.copy_in_seconds, model),
        copy_out=_total(metrics.copy_out_seconds, model),
        replays=dict(sorted(_by_bucket(metrics.replay_seconds, model), key=lambda one: one[0])),
        rows=_value(metrics.rows, model),
        batches=_value(metrics.batches, model),
    )


def _samples(metric: Collector, suffix: str, model: str) -> Iterator[tuple[Mapping[str, str], float]]:
    for family in metric.collect():
        for sample in family.samples:
            if sample.name == family.name + suffix and sample.labels["model"] == model:
                yield sample.labels, sample.value


def _value(counter: Collector, model: str) -> int:
    return int(sum(value for _, value in _samples(counter, "_total", model)))


def _total(histogram: Collector, model: str) -> Total:
    count, seconds = (sum(v for _, v in _samples(histogram, suffix, model)) for suffix in ("_count", "_sum"))
    return Total(int(count), seconds)


def _by_bucket(histogram: Collector, model: str) -> Iterator[tuple[int, Total]]:
    seconds = {labels["bucket"]: value for labels, value in _samples(histogram, "_sum", model)}
    for labels, count in _samples(histogram, "_count", model):
        yield int(labels["bucket"]), Total(int(count), seconds[labels["bucket"]])
