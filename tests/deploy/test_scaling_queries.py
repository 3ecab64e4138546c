"""The queries that pods are scaled by, evaluated by Prometheus itself: the mean wait of pods that have requests, 0 of
those that have none, and never nothing, which would stop the scaling."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import K8S, ROOT, one, with_components

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
COUNTED = "0+100x40"  # 100 more requests at each scrape
WAITED = "0+1x40"  # which waited a second together: 10 ms each
IDLE = "0+0x40"


def keda_query(folder: Path) -> str:
    (trigger,) = one(with_components(folder, K8S / "cpu", [K8S / "components" / "keda"]), "ScaledObject")["spec"][
        "triggers"
    ]
    query: str = trigger["metadata"]["query"]
    return query


def adapter_query() -> str:
    (rule,) = yaml.safe_load((ROOT / "deploy" / "prometheus-adapter" / "values.yaml").read_text())["rules"]["custom"]
    query: str = rule["metricsQuery"]
    return query.replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="n"')


def series(pod: str, waited: str, counted: str) -> list[dict[str, str]]:
    labels = f'{{namespace="n",pod="{pod}",model="m"}}'
    return [
        {"series": f"opara_queue_seconds_sum{labels}", "values": waited},
        {"series": f"opara_queue_seconds_count{labels}", "values": counted},
    ]


def evaluated(folder: Path, query: str, scraped: list[dict[str, str]], expected: Mapping[str, float]) -> bool:
    samples = [{"labels": labels, "value": value} for labels, value in expected.items()]
    asked = [{"expr": query, "eval_time": "8m", "exp_samples": samples}]
    tests: dict[str, Any] = {
        "evaluation_interval": "15s",
        "rule_files": [],
        "tests": [{"interval": "15s", "input_series": scraped, "promql_expr_test": asked}],
    }
    path = folder / "tests.yaml"
    path.write_text(yaml.safe_dump(tests))
    return subprocess.run(["promtool", "test", "rules", path], check=False).returncode == 0


def test_a_pods_wait_is_the_mean_of_its_requests_and_0_without_any(tmp_path: Path) -> None:
    scraped = [*series("busy", WAITED, COUNTED), *series("idle", IDLE, IDLE)]
    assert evaluated(tmp_path, adapter_query(), scraped, {'{pod="busy"}': 0.01, '{pod="idle"}': 0})
    assert not evaluated(tmp_path, adapter_query(), scraped, {'{pod="busy"}': 0.01})


@pytest.mark.parametrize(("busy", "wait_s"), [(True, 0.01), (False, 0.0)])
def test_the_wait_of_all_pods_is_one_number(busy: bool, wait_s: float, tmp_path: Path) -> None:
    first = series("first", WAITED, COUNTED) if busy else series("first", IDLE, IDLE)
    assert evaluated(tmp_path, keda_query(tmp_path), [*first, *series("idle", IDLE, IDLE)], {"{}": wait_s})
