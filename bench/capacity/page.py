"""What was measured and simulated, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from bench.capacity.studies import BURSTS, GROWTH, LOADS, OBJECTIVE, SCALED, SIZES, VARIATIONS, VARIED, WORKERS
from opara_client.capacity_balancing import BALANCERS
from opara_client.capacity_model import ReplicaModel

ERRORS = (("p50", "p50_ms"), ("p99", "p99_ms"), ("throughput", "answers_per_s"), ("mean wait", "queue_ms"))


def page(results: dict[str, Any], model: ReplicaModel) -> str:
    made = results["calibration"]["environment"]
    machine = f"{made['date']}, {made['cores']} cores ({made['cpu']})"
    versions = ", ".join([f"opara-serve {made['opara']}, grpcio {made['grpc']}", *_proxies(results)])
    return (
        "\n\n".join(
            [
                "# Replicas for a load",
                f"`make bench-capacity`, {machine}, {versions}. What it means: "
                "[docs/capacity.md](../../docs/capacity.md).",
                "## Predicted from one server, and measured",
                _replica(model),
                _measured(results["measured"]),
                _told(results["measured"]),
                "![Latency by load, predicted and measured](capacity_measured.svg)",
                "## Fleets",
                "p99 in ms, of replicas like the measured one. Standard errors are in [capacity.json](capacity.json).",
                _fleet(results["studies"]["fleet"]),
                "![p99 by number of replicas and balancer](capacity_fleet.svg)",
                _varied(results["studies"]["variation"]),
                _million(results["studies"]["million"]),
                "## What to scale by",
                "![p99 and mean wait by load](capacity_scaling.svg)",
                _scaling(results["studies"]["scaling"]),
            ]
        )
        + "\n"
    )


def _proxies(results: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(run["environment"]["proxy"] for run in results["measured"].values()))


def _replica(model: ReplicaModel) -> str:
    batches = ", ".join(f"{size}: {1e3 * model.batch_s[size]:.2f} ms" for size in model.buckets)
    return (
        f"The figures of one server behind Envoy, from its metrics and closed loops: batches by size {batches}; "
        f"{1e6 * model.front_s:.0f} µs of processor time for a request; {1e3 * model.base_s:.2f} ms of a lone request "
        f"are neither; {model.requests_per_s:.0f} requests/s at most. Its model waits on a sleep instead of a device."
    )


def _measured(runs: dict[str, Any]) -> str:
    rows = []
    for run in runs.values():
        settings = run["settings"]
        for point, said in zip(run["points"], run["predicted"], strict=True):
            rows.append(
                [
                    f"{settings['servers']}, {settings['proxy']}",
                    f"{point['share']:.0%}",
                    f"{point['rate']:.0f}",
                    f"{point['answers_per_s']:.0f}",
                    *(_beside(point[f"{what}_ms"], said[f"{what}_ms"]) for what in ("p50", "p99")),
                    f"{said['p99_chance_ms'] / said['p99_ms']:.0%}",
                    _beside(point["queue_ms"], said["queue_ms"]),
                    f"{point['requests_per_batch']:.1f} / {said['requests_per_batch']:.1f}",
                    f"{point['cpu_us_per_request']:.0f}",
                ]
            )
    heads = ["servers", "load", "sent/s", "answered/s", "p50", "p99", "by chance", "mean wait", "in a batch", "CPU µs"]
    return (
        "Measured / predicted, in ms, and the prediction's error. *by chance*: standard deviation of p99 among windows "
        "as long as the measured one, simulated. *CPU µs*: of the servers, for a request.\n\n" + _table(heads, rows)
    )


def _beside(measured: float, predicted: float) -> str:
    return f"{measured:.1f} / {predicted:.1f} ({predicted / measured - 1:+.0%})"


def _told(runs: dict[str, Any]) -> str:
    """The errors, plainly."""
    pairs = [pair for run in runs.values() for pair in zip(run["points"], run["predicted"], strict=True)]
    failed = sum(sum(point["failed"].values()) for point, _ in pairs)
    idle = (
        "had precedence over other work"
        if all(m["precedence"] for m, _ in pairs)
        else "had no precedence over other work"
    )
    said = []
    for name, key in ERRORS:
        errors = [predicted[key] / measured[key] - 1 for measured, predicted in pairs]
        worst = max(errors, key=abs)
        said.append(f"{name} {median(map(abs, errors)):.1%} in the median and {worst:+.0%} at worst")
    inside = sum(abs(m["p99_ms"] - p["p99_ms"]) <= 2 * p["p99_chance_ms"] for m, p in pairs)
    return (
        f"Errors of the prediction: {'; '.join(said)}. Of {len(pairs)} p99s {inside} are within two standard "
        f"deviations of what chance makes of such a window. {failed} requests failed. "
        f"What was measured {idle} of the machine."
    )


def _fleet(points: Sequence[dict[str, Any]]) -> str:
    found = {(p["burst"], p["share"], p["balancer"], p["replicas"]): p["p99_ms"] for p in points}
    rows = [
        [
            "Poisson" if burst == 1 else f"bursts of {burst}",
            f"{share:.0%}",
            balancer,
            *(f"{found[burst, share, balancer, size]:.1f}" for size in SIZES),
        ]
        for burst in BURSTS
        for share in LOADS
        for balancer in BALANCERS
    ]
    return _table(["arrivals", "load", "balancer", *(str(size) for size in SIZES)], rows)


def _varied(points: Sequence[dict[str, Any]]) -> str:
    found = {(point["variation"], point["balancer"]): point["p99_ms"] for point in points}
    rows = [
        [f"{variation:g}", *(f"{found[variation, balancer]:.1f}" for balancer in BALANCERS)] for variation in VARIATIONS
    ]
    replicas, share = VARIED
    return (
        f"p99 in ms, of {replicas} replicas at {share:.0%} whose batches of one size vary: deviation over mean.\n\n"
        + _table(["variation", *BALANCERS], rows)
    )


def _million(runs: Iterable[dict[str, Any]]) -> str:
    took = ", ".join(f"{run['balancer']} {run['seconds']:g} s" for run in runs)
    return f"A million requests to a thousand replicas take so long to simulate, on one core: {took}."


def _scaling(runs: Iterable[dict[str, Any]]) -> str:
    rows = []
    for run in runs:
        batches = " / ".join(f"{time:.2f}" for time in run["batch_ms"].values())
        for front in ("one front", "workers"):
            found = run[front]
            rows.append(
                [
                    run["network"],
                    batches,
                    front,
                    f"{found['requests_per_s']:.0f}",
                    f"{found['most_share']:.0%}",
                    f"{found['requests_per_s'] * found['most_share'] / GROWTH:.0f}",
                    f"{found['queue_ms']:.2f}",
                    f"{found['p99_ms']:.1f}",
                ]
            )
    heads = [
        "network",
        "ms at 1 / 8 / 32",
        "calls by",
        "requests/s at most",
        "up to",
        "scale at",
        "wait, ms",
        "p99, ms",
    ]
    return (
        f"{SCALED} replicas of networks as measured on an H200, behind Envoy. *up to*: the load at which p99 is "
        f"{1e3 * OBJECTIVE.latency_s:g} ms. *scale at*: requests/s of each where the load may still grow {GROWTH:g} "
        f"times to that; *wait*, *p99*: there. *calls by*: one thread, 71 µs for each, or {WORKERS} workers as fast "
        "as one alone.\n\n" + _table(heads, rows)
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))
