"""Every query of the dashboard asks for a metric that the server has, by labels that the metric has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opara_server.observe.metrics import Metrics

DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards" / "opara.json"
HISTOGRAM_SERIES = ("_bucket", "_sum", "_count")


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def queries() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]


def series() -> Iterator[str]:
    """The names of every series that a scrape of the server can have."""
    families = [family for family in Metrics().registry.collect() if family.name.startswith("opara_")]
    for family in families:
        match family.type:
            case "info":
                continue  # labels about the build: nothing to draw
            case "counter":
                yield f"{family.name}_total"
            case "histogram":
                yield from (family.name + suffix for suffix in HISTOGRAM_SERIES)
            case _:
                yield family.name


@pytest.mark.parametrize("query", queries())
def test_the_server_has_what_a_query_asks_for(query: str) -> None:
    asked = set(re.findall(r"\bopara_\w+", query))
    assert asked
    assert asked <= set(series())


def test_the_dashboard_leaves_no_metric_out() -> None:
    shown = {name for query in queries() for name in re.findall(r"\bopara_\w+", query)}
    families = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in series()}
    assert [family for family in sorted(families) if not any(name.startswith(family) for name in shown)] == []


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = dashboard()["panels"]
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


def test_the_model_variable_comes_from_a_metric_of_every_model() -> None:
    variable = next(v for v in dashboard()["templating"]["list"] if v["name"] == "model")
    assert variable["definition"] == "label_values(opara_model_ready, model)"
    assert all('model=~"$model"' in query for query in queries())
