"""Rules ask for metrics that the server has; every alert is tested, both ways, and explained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from bench.observing.panels import NAMES, load
from opara_server.observe.gpu import GPU_METRICS
from opara_server.observe.metrics import FORESEEN, REASONS, Metrics
from opara_server.serving.errors import Status

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
SERIES = {series for metric in (*Metrics().declared, *GPU_METRICS) for series in metric.series()}
SERIES |= {sample.name for family in Metrics().registry.collect() for sample in family.samples}  # of every process


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def cases() -> list[dict[str, Any]]:
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    return [test for group in tests for test in group["alert_rule_test"]]


def test_rules_ask_for_what_is_there() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        asked = set(re.findall(r"\bopara:\w+(?::\w+)?", rule["expr"]))
        metrics = set(re.findall(r"\b(?:opara|nv_gpu|process)_\w+", rule["expr"]))
        assert asked | metrics or "up{" in rule["expr"]
        assert asked <= recorded
        assert metrics <= SERIES
        for codes in re.findall(r'code=~"([^"]+)"', rule["expr"]):
            assert {*codes.split("|")} < {*Status}
            assert {*codes.split("|")} < {*FORESEEN}  # or the first failures would not be seen
        assert {*re.findall(r'reason="([^"]+)"', rule["expr"])} <= {*REASONS.values()}


def test_every_alert_is_tested_where_it_fires_and_where_it_does_not() -> None:
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert {test["alertname"] for test in cases() if test["exp_alerts"]} == alerts
    silent = {test["alertname"] for test in cases() if not test["exp_alerts"]}
    assert alerts - silent == set()


def test_every_alert_leads_to_its_section_of_the_runbook() -> None:
    page = "docs/operations.md"
    text = (ROOT / page).read_text()
    alerts = {rule["alert"]: rule["annotations"]["runbook"] for rule in rules() if "alert" in rule}
    sections = re.findall(r"^### (Opara\w+)\n\n(Critical|Warning|Info): ", text, re.MULTILINE)
    assert alerts == {name: f"{page}#{name.lower()}" for name, _ in sections}
    severities = {rule["alert"]: rule["labels"]["severity"] for rule in rules() if "alert" in rule}
    assert {name: severity.lower() for name, severity in sections} == severities


def test_panels_that_the_runbook_names_are_there() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    titles = {panel["title"] for name in NAMES for panel in load(name)["panels"]}
    named = set(re.findall(r'"([A-Z][^"]+)"', text[text.index("## Alerts") :]))
    assert named
    assert named <= titles
