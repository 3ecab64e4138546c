"""Samples of what ran when, and a machine that cannot take any but still serves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from opara_server.engine.trace import Interval, Trace
from opara_server.observe.metrics import Metrics
from opara_server.observe.occupancy import LONGEST_NAME, LONGEST_S, MOST_SHOWN, REPLAYS, Sampler
from tests.serving.fakes import make_plan

BUCKET = make_plan("m", (4,)).bucket(4)
TWO = Trace(
    ((Interval(0, 0.0, 10.0), Interval(1, 0.0, 5.0)), (Interval(1, 5.0, 10.0, "b"), Interval(0, 0.0, 10.0, "a")))
)


class Graph:
    inputs: tuple[torch.Tensor, ...] = ()
    outputs: tuple[torch.Tensor, ...] = ()
    arena = torch.empty(0, dtype=torch.uint8)
    peak_bytes: int | None = None
    anywhere: bool = False
    fresh: frozenset[int] = frozenset()

    def __init__(self, trace: Trace | Exception) -> None:
        self._trace = trace
        self.traced = 0

    def replay(self) -> None:
        raise AssertionError("a sample only traces")

    def trace(self, replays: int) -> Trace:
        self.traced += replays
        if isinstance(self._trace, Exception):
            raise self._trace
        return self._trace

    def close(self) -> None:
        raise AssertionError("a sample only traces")


def test_what_was_traced_is_published_and_kept() -> None:
    metrics = Metrics()
    sampler = Sampler(metrics)
    taken = sampler.sample("m", BUCKET, Graph(TWO))
    assert taken is not None
    assert (taken.batch_size, taken.replays, taken.omitted) == (4, 2, 0)
    assert [interval.name for interval in taken.timeline] == ["a", "b"]  # the last replay, in order of starts
    assert sampler.last("m") == {4: taken}
    assert sampler.last("another") == {}
    value = metrics.registry.get_sample_value
    assert value("opara_stream_busy_ratio", {"model": "m", "bucket": "4", "stream": "0"}) == 1.0
    assert value("opara_stream_concurrency", {"model": "m", "bucket": "4"}) == pytest.approx(1.5)
    assert value("opara_stream_sample_timestamp_seconds", {"model": "m", "bucket": "4"}) == pytest.approx(
        taken.at, abs=1
    )
    assert value("opara_stream_sampling_seconds_total", {"model": "m"}) == pytest.approx(taken.seconds)


def test_streams_of_an_earlier_schedule_are_no_longer_told_of() -> None:
    metrics = Metrics()
    sampler = Sampler(metrics)
    sampler.sample("m", BUCKET, Graph(TWO))
    sampler.sample("m", BUCKET, Graph(Trace(((Interval(0, 0.0, 10.0),),))))
    value = metrics.registry.get_sample_value
    labels = {"model": "m", "bucket": "4"}
    assert value("opara_stream_busy_ratio", labels | {"stream": "0"}) == 1.0
    assert value("opara_stream_busy_ratio", labels | {"stream": "1"}) is None
    assert value("opara_streams_busy_seconds", labels | {"busy": "1"}) == pytest.approx(1e-5)
    assert value("opara_streams_busy_seconds", labels | {"busy": "2"}) is None


@pytest.mark.parametrize(
    ("measured_us", "replays"), [(1.0, REPLAYS), (LONGEST_S * 1e6 / 3, 3), (LONGEST_S * 1e6 * 100, 1)]
)
def test_long_replays_are_traced_fewer_times(measured_us: float, replays: int) -> None:
    graph = Graph(TWO)
    Sampler(Metrics()).sample("m", replace(BUCKET, measured_us=measured_us), graph)
    assert graph.traced == replays


def test_what_is_kept_is_bounded() -> None:
    replay = tuple(Interval(0, float(at), at + 0.5, "n" * 5000) for at in range(MOST_SHOWN + 7))
    taken = Sampler(Metrics()).sample("m", BUCKET, Graph(Trace((replay,))))
    assert taken is not None
    assert (len(taken.timeline), taken.omitted) == (MOST_SHOWN, 7)
    assert {len(interval.name) for interval in taken.timeline} == {LONGEST_NAME}
    assert taken.occupancy.span_us == MOST_SHOWN + 6.5  # of all


@pytest.mark.parametrize("trace", [RuntimeError("CUPTI is not permitted"), Trace(())])
def test_a_failed_trace_is_a_warning(trace: Trace | Exception, caplog: pytest.LogCaptureFixture) -> None:
    sampler = Sampler(Metrics())
    assert sampler.sample("m", BUCKET, Graph(trace)) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert sampler.last("m") == {}
