"""What workers count and the engine tells of: each request once, whatever becomes of the processes."""

from __future__ import annotations

from opara_server.observe.metrics import UNKNOWN_MODEL, Metrics
from opara_server.workers.counting import Absorbed, WorkerCounts
from opara_server.workers.region import COUNTS_BYTES

ROWS = {"double": 1, "triple": 2}


def known() -> Metrics:
    metrics = Metrics()
    for name in ROWS:
        metrics.add_model(name)
    return metrics


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def test_all_is_counted_once_however_often_it_is_read() -> None:
    shared, counts, metrics = memoryview(bytearray(COUNTS_BYTES)), WorkerCounts(), known()
    counts.attach(shared, ROWS)
    absorbed = Absorbed(shared)
    metrics.on_read(lambda: absorbed.absorb(metrics, ROWS))
    for _ in range(3):
        counts.request("double", "OK", 0.003)
        assert sample(metrics, "opara_requests_total", model="double", code="OK") >= 1
    counts.request("triple", "RESOURCE_EXHAUSTED", 0.0)
    counts.request("nobody", "NOT_FOUND", 0.0)
    assert sample(metrics, "opara_requests_total", model="double", code="OK") == 3
    assert sample(metrics, "opara_request_seconds_bucket", model="double", le="0.0025") == 0
    assert sample(metrics, "opara_request_seconds_bucket", model="double", le="0.005") == 3
    assert abs(sample(metrics, "opara_request_seconds_sum", model="double") - 0.009) < 1e-6
    assert sample(metrics, "opara_rejected_total", model="triple", reason="queue_full") == 1
    assert sample(metrics, "opara_request_seconds_count", model="triple") == 0
    assert sample(metrics, "opara_requests_total", model=UNKNOWN_MODEL, code="NOT_FOUND") == 1


def test_what_is_counted_without_an_engine_goes_to_the_next_one() -> None:
    counts = WorkerCounts()
    counts.request("double", "UNAVAILABLE", 0.0)
    first, second = (memoryview(bytearray(COUNTS_BYTES)) for _ in range(2))
    counts.attach(first, ROWS)
    counts.detach()
    counts.request("double", "UNAVAILABLE", 0.0)
    counts.attach(second, ROWS)
    for shared, expected in ((first, {UNKNOWN_MODEL: 1}), (second, {"double": 1})):
        metrics = known()
        Absorbed(shared).absorb(metrics, ROWS)
        for name in (*ROWS, UNKNOWN_MODEL):
            assert sample(metrics, "opara_requests_total", model=name, code="UNAVAILABLE") == expected.get(name, 0)
