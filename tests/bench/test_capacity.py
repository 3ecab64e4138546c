"""The bench of the capacity model: the server that stands for one with a GPU, the proxies, tables and plots."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.balancing.proxies import PROXIES, Proxy, configured
from bench.capacity import studies
from bench.capacity.drawing import draw
from bench.capacity.models import BATCH_S, waiting
from bench.capacity.page import page
from bench.capacity.precedence import precedence
from bench.capacity.predicting import predicted
from opara_client.capacity_model import ReplicaModel
from opara_server.serving.flights import BRIEF_S

MODEL = ReplicaModel({1: 0.008, 8: 0.016}, front_s=0.001, base_s=0.001)


def test_batches_take_their_time_and_run_on_the_executors_thread() -> None:
    assert min(BATCH_S.values()) > BRIEF_S
    x, begin = torch.randn(8, 16), time.monotonic()
    (y,) = waiting()(x).values()
    assert time.monotonic() - begin >= BATCH_S[8]
    assert torch.equal(x, y)


@pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: proxy.name)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_proxy_can_have_any_number_of_servers(proxy: Proxy, count: int) -> None:
    servers = [f"10.0.0.{number}:700{number}" for number in range(1, count + 1)]
    text = configured(proxy, 1234, servers)
    assert "5005" not in text
    named = [line for line in text.splitlines() if "10.0.0." in line]
    assert len(named) == len(set(named)) == count
    assert all(f"10.0.0.{number}" in line and f"700{number}" in line for number, line in enumerate(named, 1))


def test_what_is_measured_goes_before_other_work_where_that_is_allowed() -> None:
    """A process that was started before, and one that is started then."""
    program = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(program, stdin=subprocess.PIPE) as earlier:
        with precedence() as first, subprocess.Popen(program, stdin=subprocess.PIPE) as later:
            scheduled = os.SCHED_RR if first else os.SCHED_OTHER
            assert [os.sched_getscheduler(pid) for pid in (0, earlier.pid, later.pid)] == [scheduled] * 3
        assert [os.sched_getscheduler(pid) for pid in (0, earlier.pid)] == [os.SCHED_OTHER] * 2


def measured(servers: int, proxy: str, p99_ms: float) -> dict[str, Any]:
    counts = {"share": 0.5, "rate": 200.0, "answers_per_s": 198.0, "answered": 2000, "failed": {}}
    times = {"p50_ms": 20.0, "p99_ms": p99_ms, "queue_ms": 8.0, "cpu_us_per_request": 500.0}
    point = counts | times | {"requests_per_batch": 2.0, "precedence": True}
    return {
        "environment": {"proxy": f"{proxy} 1.2.3"},
        "settings": {"seconds": 10.0, "seed": 7, "proxy": proxy, "servers": servers},
        "points": [point],
        "predicted": [predicted(MODEL, "two-choices", servers, 200.0, 2.0)],
    }


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name, few in (("SIZES", (1, 4)), ("CURVE", (0.5,)), ("NETWORKS", {"Inception-v3": "inception_v3"})):
        monkeypatch.setattr(studies, name, few)
    monkeypatch.setattr("bench.capacity.page.SIZES", (1, 4))
    monkeypatch.setattr(studies, "MILLION", 1000)
    monkeypatch.setattr("opara_client.capacity_plan.requests", lambda _replicas, _share: 5000)
    made = {"date": "2026-01-01", "cores": 4, "cpu": "x", "opara": "1", "grpc": "1.85"}
    runs = {"envoy 1": measured(1, "envoy", 30.0), "envoy 4": measured(4, "envoy", 20.0)}
    return {"calibration": {"environment": made}, "measured": runs, "studies": studies.studies(MODEL)}


def test_the_page_says_what_was_measured_and_the_errors(results: dict[str, Any], tmp_path: Path) -> None:
    said = results["measured"]["envoy 1"]["predicted"][0]
    text = page(results, MODEL)
    assert f"30.0 / {said['p99_ms']:.1f} ({said['p99_ms'] / 30 - 1:+.0%})" in text
    assert "0 requests failed" in text
    assert text.count("| two-choices |") == 5
    assert "| Inception-v3 |" in text
    draw(results, tmp_path)
    drawn = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert sorted(drawn) == ["capacity_fleet.svg", "capacity_measured.svg", "capacity_scaling.svg"]
    assert "2 servers" not in drawn["capacity_measured.svg"]
    assert "4 servers, envoy" in drawn["capacity_measured.svg"]
