"""What /metrics says, read the way Prometheus reads it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from opara_server.engine.plan import BucketPlan, Candidate, Plan
from opara_server.engine.trace import Interval, Trace, occupancy
from opara_server.observe.metrics import FORESEEN, UNKNOWN_MODEL, Metrics
from tests.ports import reserved_port

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
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        text = response.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_metric_has_its_name_and_labels(metrics: Metrics) -> None:
    model = metrics.model(plan(bucket(1), bucket(4)))
    metrics.show(plan(bucket(1), bucket(4)))
    model.ran(4, rows=3, copy_in_s=1e-5, replay_s=2e-3, copy_out_s=1e-5)
    model.waited([1e-3, 2e-3])
    metrics.watch_queue("m", lambda: 17)
    metrics.receive("m")
    metrics.request("m", "OK", 0.004)
    metrics.refuse("m", "RESOURCE_EXHAUSTED", 0.001)
    metrics.occupancy("m", 4, occupancy(Trace(((Interval(0, 0, 100), Interval(1, 50, 100)),))), at=1e9)
    metrics.set_ready("m", ready=True)
    metrics.build_info(version="1.2.3", torch="2.13", grpc="1.85")
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
        ("opara_received_total", (m,)): 2,
        ("opara_rejected_total", (m, ("reason", "queue_full"))): 1,
        ("opara_rows_total", (m,)): 3,
        ("opara_batches_total", (m,)): 1,
        ("opara_padded_rows_total", (m,)): 1,
        ("opara_replays_total", (b, m, ("policy", "opara"))): 1,
        ("opara_replays_total", (("bucket", "1"), m, ("policy", "opara"))): 0,
        ("opara_queue_depth_rows", (m,)): 17,
        ("opara_plan_speedup", (b, m)): 1.5,
        ("opara_graph_bytes", (b, m)): 1024,
        ("opara_schedule_fallbacks", (m,)): 0,
        ("opara_stream_busy_ratio", (b, m, ("stream", "1"))): 0.5,
        ("opara_stream_concurrency", (b, m)): 1.5,
        ("opara_stream_sample_timestamp_seconds", (b, m)): 1e9,
        ("opara_streams_busy_seconds", (b, ("busy", "2"), m)): 5e-5,
        ("opara_model_ready", (m,)): 1,
        ("opara_build_info", (("grpc", "1.85"), ("torch", "2.13"), ("version", "1.2.3"))): 1,
    }
    assert {key: seen.get(key) for key in expected} == pytest.approx(expected)


def test_what_is_counted_begins_at_0_where_failures_are_the_servers(metrics: Metrics) -> None:
    seen, m = scrape(metrics), ("model", "m")
    assert {code: seen["opara_requests_total", (("code", code), m)] for code in FORESEEN} == dict.fromkeys(FORESEEN, 0)
    for reason in ("queue_full", "deadline", "unavailable"):
        assert seen["opara_rejected_total", (m, ("reason", reason))] == 0
    assert seen["opara_request_seconds_count", (m,)] == 0
    assert not any(name == "opara_requests_total" and ("model", UNKNOWN_MODEL) in labels for name, labels in seen)


def test_clients_cannot_make_labels(metrics: Metrics) -> None:
    for index in range(100):
        metrics.refuse(f"made-up-{index}", "NOT_FOUND", 0.0)
    seen = scrape(metrics)
    assert seen["opara_received_total", (("model", UNKNOWN_MODEL),)] == 100
    assert seen["opara_requests_total", (("code", "NOT_FOUND"), ("model", UNKNOWN_MODEL))] == 100
    assert seen["opara_rejected_total", (("model", UNKNOWN_MODEL), ("reason", "unknown_model"))] == 100
    assert not any("made-up" in value for _, labels in seen for _, value in labels)


def test_no_request_is_lost_or_counted_twice_between_threads_and_scrapes(metrics: Metrics) -> None:
    answered, threads = 2_000, 4
    ended = threading.Event()

    def answer() -> None:
        for number in range(answered):
            metrics.request("m", "INVALID_ARGUMENT" if number % 3 else "OK", 0.25)

    def read() -> None:
        before = 0.0
        while not ended.is_set():
            now = metrics.registry.get_sample_value("opara_requests_total", ok) or 0.0
            assert now >= before, "a counter went back"
            before = now

    ok = {"model": "m", "code": "OK"}
    with ThreadPoolExecutor(threads + 1) as pool:
        reading = pool.submit(read)
        for answering in [pool.submit(answer) for _ in range(threads)]:
            answering.result()
        ended.set()
        reading.result()
    seen = scrape(metrics)
    well = threads * len(range(0, answered, 3))
    assert seen["opara_requests_total", (("code", "OK"), ("model", "m"))] == well
    assert seen["opara_request_seconds_count", (("model", "m"),)] == well
    assert seen["opara_request_seconds_sum", (("model", "m"),)] == well / 4
    assert seen["opara_rejected_total", (("model", "m"), ("reason", "invalid_input"))] == threads * answered - well


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
    metrics.show(made)
    assert scrape(metrics)["opara_schedule_fallbacks", (("model", "m"),)] == fallbacks


def test_the_exposition_stops_and_can_start_again(metrics: Metrics) -> None:
    with reserved_port() as port:
        assert metrics.start("127.0.0.1", port) == port
        metrics.stop()
        metrics.stop()
        assert metrics.start("127.0.0.1", port) == port
