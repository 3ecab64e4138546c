"""What /metrics says, read the way Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from opara_server.engine.plan import BucketPlan, Candidate, Plan
from opara_server.engine.trace import Interval, Trace, occupancy
from opara_server.observe.metrics import UNKNOWN_MODEL, Metrics

Labels = tuple[tuple[str, str], ...]


def bucket(batch_size: int, policy: str = "opara", rejected: str = "") -> BucketPlan:
    candidate = Candidate("aten", "opara", True, 2, 1, 9.0, 10.0, 1024, rejected)
    return BucketPlan(batch_size, policy, True, "aten", 3, 2, 2, 8.0, 2, 1, 10.0, 15.0, 1024, (candidate,))


def plan(*buckets: BucketPlan, fallback_reason: str = "") -> Plan:
    return Plan("m", "cpu", "a processor", buckets, fallback_reason)


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    with Metrics() as metrics:
        metrics.add_model("m")
        yield metrics


def scrape(metrics: Metrics) -> dict[tuple[str, Labels], float]:
    port = metrics.start("127.0.0.1", 0)
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_metric_has_its_name_and_labels(metrics: Metrics) -> None:
    model = metrics.model(plan(bucket(1), bucket(4)))
    model.ran(4, rows=3, copy_in_s=1e-5, replay_s=2e-3, copy_out_s=1e-5)
    model.waited([1e-3, 2e-3])
    model.watch_queue(lambda: 17)
    metrics.request("m", "OK", 0.004)
    metrics.request("m", "RESOURCE_EXHAUSTED", 0.001)
    metrics.occupancy("m", 4, occupancy(Trace(((Interval(0, 0, 100), Interval(1, 50, 100)),))))
    metrics.set_ready("m", ready=True)
    metrics.build_info(version="1.2.3")
    seen = scrape(metrics)
    m, b = ("model", "m"), ("bucket", "4")
    expected = {
        ("opara_request_seconds_count", (m,)): 1,
        ("opara_request_seconds_bucket", (("le", "0.0001"), m)): 0,
        ("opara_request_seconds_bucket", (("le", "0.005"), m)): 1,
        ("opara_request_seconds_bucket", (("le", "10.0"), m)): 1,
        ("opara_queue_seconds_sum", (m,)): 3e-3,
        ("opara_queue_seconds_count", (m,)): 2,
        ("opara_queue_seconds_bucket", (("le", "0.001"), m)): 1,
        ("opara_copy_in_seconds_sum", (m,)): 1e-5,
        ("opara_replay_seconds_sum", (b, m)): 2e-3,
        ("opara_copy_out_seconds_count", (m,)): 1,
        ("opara_requests_total", (("code", "OK"), m)): 1,
        ("opara_requests_total", (("code", "RESOURCE_EXHAUSTED"), m)): 1,
        ("opara_rejected_total", (m, ("reason", "queue_full"))): 1,
        ("opara_rows_total", (m,)): 3,
        ("opara_batches_total", (m,)): 1,
        ("opara_padded_rows_total", (m,)): 1,
        ("opara_replays_total", (b, m, ("policy", "opara"))): 1,
        ("opara_replays_total", (("bucket", "1"), m, ("policy", "opara"))): 0,
        ("opara_queue_depth_rows", (m,)): 17,
        ("opara_plan_speedup", (b, m)): 1.5,
        ("opara_graph_bytes", (b, m)): 1024,
        ("opara_schedule_fallbacks_total", (m,)): 0,
        ("opara_stream_busy_ratio", (b, m, ("stream", "1"))): 0.5,
        ("opara_stream_concurrency", (b, m)): 1.5,
        ("opara_streams_busy_seconds", (b, ("busy", "2"), m)): 5e-5,
        ("opara_model_ready", (m,)): 1,
        ("opara_build_info", (("version", "1.2.3"),)): 1,
    }
    assert {key: seen.get(key) for key in expected} == pytest.approx(expected)


def test_clients_cannot_make_labels(metrics: Metrics) -> None:
    for index in range(100):
        metrics.request(f"made-up-{index}", "NOT_FOUND", 0.0)
    seen = scrape(metrics)
    assert seen["opara_requests_total", (("code", "NOT_FOUND"), ("model", UNKNOWN_MODEL))] == 100
    assert seen["opara_rejected_total", (("model", UNKNOWN_MODEL), ("reason", "unknown_model"))] == 100
    assert not any("made-up" in value for _, labels in seen for _, value in labels)


@pytest.mark.parametrize(
    ("made", "fallbacks"),
    [
        (plan(bucket(1, "sequential", "wrong numbers"), bucket(4)), 1),
        (plan(bucket(1, "sequential"), bucket(4, "sequential")), 0),  # it measured fastest
        (plan(bucket(1, "sequential"), bucket(4, "sequential"), fallback_reason="cannot be exported"), 2),
        (plan(bucket(1, "nimble", "wrong numbers")), 0),
        (plan(bucket(1, "sequential", "not measured: beyond the tuning budget")), 0),  # nobody has tried it
    ],
)
def test_fallbacks_are_buckets_that_are_sequential_for_want_of_better(
    metrics: Metrics, made: Plan, fallbacks: int
) -> None:
    metrics.model(made)
    assert scrape(metrics)["opara_schedule_fallbacks_total", (("model", "m"),)] == fallbacks


def test_the_exposition_stops_and_can_start_again(metrics: Metrics) -> None:
    port = metrics.start("127.0.0.1", 0)
    metrics.stop()
    metrics.stop()
    assert metrics.start("127.0.0.1", port) == port
