"""Dashboards are those of the code, and ask for metrics that the server has."""

from __future__ import annotations

import re

import pytest

from bench.observing.panels import DASHBOARDS, NAMES, load, queries
from deploy.grafana.__main__ import texts
from opara_server.observe.gpu import GPU_METRICS
from opara_server.observe.metrics import Metrics

DECLARED = (*Metrics().declared, *GPU_METRICS)
SERIES = {series for metric in DECLARED for series in metric.series()}
METRIC = re.compile(r"\b(?:opara|nv_gpu|process)_\w+")
PROCESS = {sample.name for family in Metrics().registry.collect() for sample in family.samples}


def test_the_files_are_what_the_code_writes() -> None:
    assert {path.name: path.read_text() for path in DASHBOARDS.glob("*.json")} == texts(), "run: make dashboards"


@pytest.mark.parametrize("name", NAMES)
def test_the_server_has_what_a_query_asks_for(name: str) -> None:
    for query in queries(name):
        asked = query.metrics()
        assert asked
        assert asked <= SERIES | PROCESS, query.panel


def test_the_dashboards_leave_no_metric_out() -> None:
    shown = {metric for name in NAMES for query in queries(name) for metric in query.metrics()}
    assert [metric.name for metric in DECLARED if not shown & {*metric.series()}] == []


@pytest.mark.parametrize("name", NAMES)
def test_panels_do_not_overlap_and_have_ids_of_their_own(name: str) -> None:
    panels = load(name)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", NAMES)
def test_variables_come_from_labels_of_metrics_and_are_used(name: str) -> None:
    for variable in load(name)["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((\w+)(\{.*\})?, (\w+)\)", variable["query"]["query"])
            assert found
            metric, chosen, label = found.groups()
            assert label == variable["name"]
            assert chosen == (None if label == "namespace" else '{namespace=~"$namespace"}')
            assert label in {"namespace", "pod"} or label in next(m.labels for m in DECLARED if m.name == metric)
            assert any(f'{label}=~"${label}"' in query.expr for query in queries(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_query_is_of_the_chosen_namespaces_and_all_are_those_without_a_name_too(name: str) -> None:
    (variable,) = [one for one in load(name)["templating"]["list"] if one["name"] == "namespace"]
    assert (variable["includeAll"], variable["allValue"]) == (True, ".*")
    for query in queries(name):
        joined = query.expr.count(" and on (job, instance) opara_build_info")  # of what is chosen already
        assert query.expr.count('namespace=~"$namespace"') == len(METRIC.findall(query.expr)) - joined, query.panel
