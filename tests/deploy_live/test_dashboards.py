"""Every query of every dashboard, asked of a Prometheus that scraped servers under load, has an answer."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import pytest

from bench.observing.panels import NAMES, Asked, queries
from bench.observing.prometheus import Monitoring, QueryError, Series
from tests.deploy_live.conftest import NAMESPACE, eventually

ASKED = [query for name in NAMES for query in queries(name)]
RATE_INTERVAL = "5s"


def name(query: Asked) -> str:
    return f"{query.dashboard}: {query.panel}"


def has_data(found: Sequence[Series]) -> bool:
    return any(isfinite(series.points[-1][1]) for series in found)


@pytest.mark.parametrize("query", ASKED, ids=name)
def test_a_panel_has_data(query: Asked, watched: Monitoring) -> None:
    eventually(lambda: watched.query(query.filled(RATE_INTERVAL)), has_data)


@pytest.mark.parametrize("query", ASKED, ids=name)
def test_a_legend_names_labels_that_the_series_have(query: Asked, watched: Monitoring) -> None:
    named = {part.split("}}")[0] for part in query.legend.split("{{")[1:]}
    found = watched.query(query.filled(RATE_INTERVAL))
    assert all(named <= series.labels.keys() for series in found)


@pytest.mark.parametrize("query", ASKED, ids=name)
def test_a_panel_tells_namespaces_apart(query: Asked, watched: Monitoring) -> None:
    (only,) = watched.query(f'up{{namespace="{NAMESPACE}"}}')
    for series in watched.query(query.filled(RATE_INTERVAL, namespace=NAMESPACE)):
        assert series.labels.get("model", "small") == "small"
        assert series.labels.get("pod", only.labels["pod"]) == only.labels["pod"]
    nowhere = watched.query(query.filled(RATE_INTERVAL, namespace="nowhere"))
    assert all(series.points[-1][1] == 0 for series in nowhere)  # some show 0 where there is nothing


def test_what_is_no_promql_is_refused(watched: Monitoring) -> None:
    with pytest.raises(QueryError, match="parse error"):
        watched.query("sum(rate(opara_requests_total)")


def test_variables_of_dashboards_have_values(watched: Monitoring) -> None:
    models = {"branches", "small", "broken"}
    eventually(lambda: watched.query("opara_model_ready"), lambda found: models <= {s.labels["model"] for s in found})
    eventually(lambda: watched.query("opara_build_info"), lambda found: len({s.labels["pod"] for s in found}) >= 2)


def test_latencies_are_marked_with_traces(watched: Monitoring) -> None:
    (query,) = [query for query in ASKED if query.panel == "Latency p99" and "model" in query.legend]
    found = eventually(lambda: watched.exemplars(query.filled(RATE_INTERVAL)))
    assert all(len(exemplar["labels"]["trace_id"]) == 32 for exemplar in found)
