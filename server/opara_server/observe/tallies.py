"""Counters and histograms for the path of requests: an attribute and a list, read when Prometheus asks.

prometheus_client's own take a lock for every increment, at 0.3 to 0.7 µs each; what the executor counts, only its
thread writes. Who counts from several threads brings a lock.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar


class Count:
    """``value`` only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Distribution:
    """How many values fell under each of the bounds, and their sum."""

    __slots__ = ("_bounds", "_counts", "_exemplars", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = list(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._exemplars: dict[int, tuple[int, float, float]] = {}  # by bucket: trace, value, Unix time

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def observe_all(self, values: Iterable[float]) -> None:
        bounds, counts, total = self._bounds, self._counts, 0.0
        for value in values:
            counts[bisect_left(bounds, value)] += 1
            total += value
        self._sum += total

    def add(self, counts: Sequence[int], total: float) -> None:
        """Values that were counted elsewhere, by bucket, and their sum."""
        for index, count in enumerate(counts):
            self._counts[index] += count
        self._sum += total

    def exemplify(self, value: float, trace_id: int, at: float | None = None) -> None:
        """One of the values, by which a trace is found: the last of its bucket. ``at``: in Unix time; None: now."""
        at = time.time() if at is None else at
        self._exemplars[bisect_left(self._bounds, value)] = trace_id, value, at

    def exemplars(self) -> list[tuple[()] | tuple[Exemplar]]:
        """Of each bucket, where it has one."""
        found = map(self._exemplars.get, range(len(self._counts)))
        return [() if noted is None else (_exemplar(*noted),) for noted in found]

    def sample(self) -> tuple[list[tuple[str, float]], float]:
        """The buckets as Prometheus has them, each with all that is less, and the sum."""
        names = [*map(str, self._bounds), "+Inf"]
        return list(zip(names, accumulate(self._counts[:]), strict=True)), self._sum


def _exemplar(trace_id: int, value: float, at: float) -> Exemplar:
    return Exemplar({"trace_id": f"{trace_id:032x}"}, value, at)


Child = TypeVar("Child")


class _Family(Collector, ABC, Generic[Child]):
    """One name, with a child for every combination of values that its labels have had."""

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name, self._text, self._labels = name, text, tuple(labels)
        self._children: dict[tuple[str, ...], Child] = {}
        registry.register(self)

    def labels(self, *values: str) -> Child:
        """The child with these labels, the same at every call."""
        assert len(values) == len(self._labels)
        return self._children.setdefault(values, self._child())

    @abstractmethod
    def _child(self) -> Child: ...


class CountFamily(_Family[Count]):
    def _child(self) -> Count:
        return Count()

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, child in list(self._children.items()):
            family.add_metric(values, child.value)
        yield family


class DistributionFamily(_Family[Distribution]):
    def __init__(
        self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        super().__init__(name, text, labels, registry)
        self._bounds = tuple(bounds)

    def _child(self) -> Distribution:
        return Distribution(self._bounds)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, child in list(self._children.items()):
            buckets, total = child.sample()
            pairs = zip(buckets, child.exemplars(), strict=True)
            family.add_metric(values, [(*bucket, *exemplar) for bucket, exemplar in pairs], total)
        yield family


class Elsewhere(Collector):
    """What is counted later or in other processes comes in when Prometheus asks; it has no metric of its own."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def ask(self) -> None:
        with self._lock:
            for callback in self.callbacks:
                callback()

    def collect(self) -> Iterable[Metric]:
        self.ask()
        return ()

    def describe(self) -> Iterable[Metric]:
        return ()
