"""The reference page of the metrics says what the code has."""

from __future__ import annotations

from pathlib import Path

from opara_server.engine.plan import BucketPlan, Plan
from opara_server.engine.trace import Interval, Trace, occupancy
from opara_server.observe.metrics import BUILD_FACTS, Metrics
from opara_server.observe.reference import page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def used() -> Metrics:
    """Metrics that have a value under every name."""
    metrics = Metrics()
    bucket = BucketPlan(4, "opara", True, "aten", 3, 2, 2, 8.0, 2, 1, 10.0, 15.0, 1024, ())
    plan = Plan("m", "cpu", "a processor", (bucket,))
    model = metrics.model(plan)
    metrics.show(plan)
    metrics.watch_queue("m", lambda: 0)
    model.ran(4, rows=3, copy_in_s=1e-5, replay_s=2e-3, copy_out_s=1e-5)
    metrics.refuse("m", "UNAVAILABLE", 0.1)
    metrics.occupancy("m", 4, occupancy(Trace(((Interval(0, 0, 100),),))), at=1e9)
    metrics.add_model("m")
    metrics.build_info(**dict.fromkeys(BUILD_FACTS, "1"))
    return metrics


def test_the_page_is_that_of_the_code() -> None:
    assert PAGE.read_text() == page(Metrics()), "run: make metrics-doc"


def test_metrics_are_what_they_are_declared_to_be() -> None:
    metrics = used()
    ours = [family for family in metrics.registry.collect() if family.name.startswith("opara_")]
    labels = {s.name: {*s.labels} - {"le"} for family in ours for s in family.samples}
    kinds = {s.name: family.type for family in ours for s in family.samples}
    declared = {name: metric for metric in metrics.declared for name in metric.series()}
    assert labels == {name: {*metric.labels} for name, metric in declared.items()}
    assert {**kinds, "opara_build_info": "gauge"} == {name: metric.kind for name, metric in declared.items()}


def test_names_and_latencies_follow_the_conventions() -> None:
    for metric in Metrics().declared:
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.kind != "histogram" or (metric.name.endswith("_seconds") and metric.bounds[0] <= 1e-4)
