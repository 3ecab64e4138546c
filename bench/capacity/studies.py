"""What the capacity model says of fleets: by balancer and size, by load, and what to scale measured networks by."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from bench.capacity.predicting import SHARE
from opara_client.capacity_balancing import BALANCERS
from opara_client.capacity_model import ReplicaModel
from opara_client.capacity_plan import Objective, Offered, highest, offer
from opara_client.capacity_simulation import Outcome, simulate
from opara_client.perf_arrivals import NS, Arrivals

RESULTS = Path(__file__).resolve().parents[1] / "results"
SIZES = (1, 2, 4, 10, 30, 100, 300, 1000)
LOADS = (0.7, 0.9)
BURSTS = (1, 16)
VARIATIONS = (0.0, 0.5, 1.0)  # of batches of one size
VARIED = (10, 0.8)  # replicas and load
CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98)
MILLION = 1_000_000

NETWORKS = {
    "DeepFM": "deepfm",
    "GoogLeNet": "googlenet",
    "BERT-base": "bert_base",
    "Inception-v3": "inception_v3",
    "T5-small": "t5_small",
    "HRNet-W18-small-v2": "hrnet_w18_small_v2",
    "NASNet-A-large": "nasnet_a_large",
}
BATCHES = (1, 8, 32)
FRONT_LIMITED = "Inception-v3"
SCALED = 4  # replicas
WORKERS = 4  # that take calls for one device, as if each were as fast as one alone
GROWTH = 1.25
OBJECTIVE = Objective(SHARE, 0.1)  # of deploy/prometheus/rules.yml
BASE_S = 0.001


def studies(model: ReplicaModel) -> dict[str, Any]:
    """``model``: of the server that was measured."""
    return {
        "fleet": [fleet(model, *what) for what in product(BALANCERS, SIZES, LOADS, BURSTS)],
        "variation": [varied(model, *what) for what in product(VARIATIONS, BALANCERS)],
        "load": {"measured": curve(model), FRONT_LIMITED: curve(network(FRONT_LIMITED))},
        "scaling": [scaling(name) for name in NETWORKS],
        "million": [million(model, balancer) for balancer in BALANCERS],
    }


def fleet(model: ReplicaModel, balancer: str, replicas: int, share: float, burst: int) -> dict[str, Any]:
    """At a share of what so many replicas serve at most."""
    rate = share * replicas * model.requests_per_s
    outcome = offer(model, replicas, Offered(rate, burst, balancer), SHARE)
    return {"balancer": balancer, "replicas": replicas, "share": share, "burst": burst, **_times(outcome)}


def varied(model: ReplicaModel, variation: float, balancer: str) -> dict[str, Any]:
    """With batches of one size that do not take the same time."""
    return {"variation": variation, **fleet(replace(model, variation=variation), balancer, *VARIED, burst=1)}


def curve(model: ReplicaModel) -> list[dict[str, Any]]:
    """Of SCALED replicas, by load."""
    points = []
    for share in CURVE:
        rate = share * SCALED * model.requests_per_s
        points.append({"share": share, **_times(offer(model, SCALED, Offered(rate), SHARE))})
    return points


def scaling(name: str) -> dict[str, Any]:
    """What SCALED replicas of a network serve, and its mean wait where the load may still grow by GROWTH: with one
    thread that takes calls, and with WORKERS."""
    model = network(name)
    batch_ms = {size: 1e3 * seconds for size, seconds in model.batch_s.items()}
    return {
        "network": name,
        "batch_ms": batch_ms,
        "one front": _scaled(model),
        "workers": _scaled(replace(model, front_s=model.front_s / WORKERS)),
    }


def _scaled(model: ReplicaModel) -> dict[str, float]:
    offered = Offered(0.05 * SCALED * model.requests_per_s)
    most = highest(model, SCALED, offered, OBJECTIVE)
    outcome = offer(model, SCALED, replace(offered, rate=most / GROWTH), SHARE)
    return {"requests_per_s": model.requests_per_s, "most_share": most / SCALED / model.requests_per_s} | _times(
        outcome
    )


def network(name: str) -> ReplicaModel:
    """As measured on an H200 (bench-engine), with the thread that takes calls as measured on a CPU (bench-metrics)."""
    files = {size: RESULTS / "engine" / f"{NETWORKS[name]}-float16-b{size}.json" for size in BATCHES}
    cells = {size: json.loads(file.read_text()) for size, file in files.items()}
    cost = json.loads((RESULTS / "metrics_cost.json").read_text())
    return ReplicaModel(
        batch_s={size: cell["systems"]["ours"]["median_us"] / 1e6 for size, cell in cells.items()},
        front_s=1 / cost["requests/s without"],
        base_s=BASE_S,
    )


def million(model: ReplicaModel, balancer: str) -> dict[str, Any]:
    """How long a million requests to a thousand replicas take to simulate."""
    rate = 0.9 * SIZES[-1] * model.requests_per_s
    due_s = Arrivals(rate).due_ns(MILLION / rate) / NS
    begin = time.perf_counter()
    simulate(model, SIZES[-1], balancer, due_s)
    return {"balancer": balancer, "requests": len(due_s), "seconds": round(time.perf_counter() - begin, 2)}


def _times(outcome: Outcome) -> dict[str, float]:
    return {
        "p50_ms": 1e3 * outcome.quantile(0.5),
        "p99_ms": 1e3 * outcome.quantile(SHARE),
        "p99_error_ms": 1e3 * outcome.quantile_error(SHARE),
        "queue_ms": 1e3 * float(outcome.wait_s.mean()),
        "busy": outcome.busy,
    }
