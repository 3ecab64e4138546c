"""Recording and alert rules: as promtool tests them, and up to a real Alertmanager."""

from __future__ import annotations

import re
import subprocess
from functools import partial
from typing import Any

import pytest
import yaml

from bench.observing.prometheus import DEPLOY, PROMTOOL, Monitoring
from tests.deploy_live.conftest import eventually

NOT_READY = "OparaModelNotReady"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((DEPLOY / "rules.yml").read_text())["groups"] for rule in group["rules"]
]


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")],
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([PROMTOOL, *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alertmanager_takes_its_configuration() -> None:
    subprocess.run(["amtool", "check-config", "alertmanager.yml"], cwd=DEPLOY, check=True, capture_output=True)


@pytest.mark.parametrize("rule", [rule["record"] for rule in RULES if "record" in rule])
def test_what_is_recorded_has_values(rule: str, watched: Monitoring) -> None:
    eventually(lambda: watched.query(rule))


@pytest.mark.parametrize("rule", [rule for rule in RULES if "alert" in rule], ids=lambda rule: str(rule["alert"]))
def test_what_an_alert_looks_at_is_scraped(rule: dict[str, Any], watched: Monitoring) -> None:
    for series in re.findall(r"\b(?:opara:|opara_|nv_gpu_|process_)[\w:]+|\bup\b", rule["expr"]):
        eventually(partial(watched.query, series))


def test_the_memory_of_a_gpu_is_a_share(watched: Monitoring) -> None:
    (rule,) = [rule for rule in RULES if rule.get("alert") == "OparaGpuMemory"]
    share, _ = rule["expr"].split(" > ")
    (found,) = eventually(lambda: watched.query(share))
    assert 0 < found.points[-1][1] < 1


def test_an_alert_gets_to_alertmanager(watched: Monitoring) -> None:
    """The model that cannot be loaded; not those that serve."""
    told = eventually(lambda: [a["labels"] for a in watched.alerts() if a["labels"]["alertname"] == NOT_READY])
    assert [(labels["model"], labels["severity"]) for labels in told] == [("broken", "critical")]
