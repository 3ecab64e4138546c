"""What the capacity model says of the loads that were measured, from the figures of one server alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.balancing.replicas import MODEL
from opara_client.capacity_balancing import BALANCERS
from opara_client.capacity_figures import from_metrics, with_perf
from opara_client.capacity_model import ReplicaModel
from opara_client.capacity_plan import Offered, offer
from opara_client.capacity_simulation import WARM_UP, simulate
from opara_client.perf_arrivals import NS, Arrivals

WINDOWS = 20  # as long as what was measured, to know how much such a window varies by chance
SHARE = 0.99
PROXIES = {"envoy": "two-choices", "haproxy": "least-loaded", "nginx": "round-robin"}
assert set(PROXIES.values()) <= set(BALANCERS)


def replica(calibration: dict[str, Any]) -> ReplicaModel:
    """As ``opara-client capacity`` has it."""
    return with_perf(from_metrics(calibration["metrics"], MODEL), calibration["perf"])


def predicted(model: ReplicaModel, balancer: str, replicas: int, rate: float, duration_s: float) -> dict[str, float]:
    """``p50_ms`` and so on of a long run; ``p50_chance_ms``: by how much (standard deviation) those of a window of
    ``duration_s`` differ by chance."""
    outcome = offer(model, replicas, Offered(rate, balancer=balancer), SHARE)
    windows = [_window(model, balancer, replicas, rate, duration_s, seed) for seed in range(1, 1 + WINDOWS)]
    return {
        "p50_ms": 1e3 * outcome.quantile(0.5),
        "p99_ms": 1e3 * outcome.quantile(SHARE),
        "queue_ms": 1e3 * float(outcome.wait_s.mean()),
        "requests_per_batch": outcome.requests_per_batch,
        "answers_per_s": rate * (1 - outcome.refused),
        "p50_chance_ms": 1e3 * _deviation([p50 for p50, _ in windows]),
        "p99_chance_ms": 1e3 * _deviation([p99 for _, p99 in windows]),
    }


def _window(
    model: ReplicaModel, balancer: str, replicas: int, rate: float, duration_s: float, seed: int
) -> tuple[float, float]:
    due_s = Arrivals(rate, seed=seed).due_ns(duration_s / (1 - WARM_UP)) / NS
    outcome = simulate(model, replicas, balancer, due_s, seed)
    return outcome.quantile(0.5), outcome.quantile(SHARE)


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1))
