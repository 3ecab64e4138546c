"""``opara-client capacity``: how many replicas a load needs, from what was measured of one. Asks no server."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from opara_client.capacity_figures import from_metrics, read_metrics, read_perf, with_perf
from opara_client.capacity_model import ReplicaModel
from opara_client.capacity_plan import Need, Objective, Offered, plan
from opara_client.inputs import InputError


def capacity(args: argparse.Namespace) -> int:
    """Prints what the options ask for; 0. Raises InputError for wrong usage, and where no number of replicas does."""
    try:
        model = _replica(args)
    except ValueError as error:
        raise InputError(str(error)) from error
    objective = Objective(args.percentile / 100, args.slo_ms / 1e3)
    needs = [
        plan(model, Offered(rate, args.burst, args.balancer, args.seed), objective, args.zones, args.growth)
        for rate in args.rate
    ]
    if args.json:
        replica = {**asdict(model), "requests_per_s": model.requests_per_s, "lone_s": model.lone_s}
        print(json.dumps({"replica": replica, "objective": asdict(objective), "needs": [asdict(n) for n in needs]}))
    else:
        print("\n".join(lines(model, needs, args)))
    return 0


def _replica(args: argparse.Namespace) -> ReplicaModel:
    if len(args.metrics) > 2:
        raise InputError("--metrics: one, or one from before a load and one from after it")
    if args.metrics and args.model is None:
        raise InputError("--metrics: of which MODEL?")
    batch_s = {size: milliseconds / 1e3 for size, milliseconds in args.batch_ms or ()}
    if args.metrics:
        model = from_metrics([read_metrics(place) for place in args.metrics], args.model)
    elif batch_s:
        model = ReplicaModel(batch_s)
    else:
        raise InputError("give --metrics or --batch-ms: how long batches take")
    given: dict[str, Any] = {
        "batch_s": batch_s or None,
        "front_s": _scaled(args.front_us, 1e-6),
        "rows": args.rows,
        "variation": args.variation,
        "queue_rows": args.queue_rows,
        "delay_s": _scaled(args.queue_delay_us, 1e-6),
    }
    model = replace(model, **{name: value for name, value in given.items() if value is not None})
    if args.perf:
        report = read_perf(args.perf)
        model = with_perf(model, {**report, "rows": args.rows or report["rows"]})
    return model if args.base_ms is None else replace(model, base_s=args.base_ms / 1e3)


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def lines(model: ReplicaModel, needs: Sequence[Need], args: argparse.Namespace) -> list[str]:
    """Tables and what their columns mean."""
    batches = ", ".join(f"{size}: {1e3 * model.batch_s[size]:.3g}" for size in model.buckets)
    percentile, within = f"p{args.percentile:g}", f"{args.slo_ms:g} ms"
    counts = ("load", "replicas", "1 lost", "zone lost", "zone, update")
    head = (*counts, "p50", percentile, "±", "queue", "batch", "up to", "each", "target")
    table = [head, *(_row(need, args.growth) for need in needs)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        f"one replica: {model.requests_per_s:.0f} requests/s at most; a lone request takes {1e3 * model.lone_s:.2f} ms",
        f"ms by batch size: {batches}; of its front for each request {1e3 * model.front_s:.3g}",
        *("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table),
        f"replicas: the fewest with {percentile} <= {within}, all of them there",
        "1 lost: still as many when one is lost, or replaced without another before it; "
        f"zone lost: of {args.zones}, over which they are spread evenly; zone, update: both at once",
        f"p50, {percentile} with its standard error, queue: ms, with so many at that load; queue: the mean wait for a "
        "batch; batch: requests in one",
        f"up to: requests/s that so many still serve within {within}",
        f"each, target: what to scale by, at a load that may grow {args.growth:g} times to that: requests/s of each "
        "replica, ms of mean wait in the queue",
    ]


def _row(need: Need, growth: float) -> tuple[str, ...]:
    counts = (need.replicas, need.replica_lost, need.zone_lost, need.zone_lost_in_update)
    times = (need.median_s, need.quantile_s, need.quantile_error_s, need.queue_s)
    return (
        f"{need.rate:g}/s",
        *map(str, counts),
        *(f"{1e3 * time:.2f}" for time in times),
        f"{need.requests_per_batch:.1f}",
        f"{need.most_per_s:.0f}/s",
        f"{need.most_per_s / growth / need.replicas:.0f}/s",
        f"{1e3 * need.target_s:.2f}",
    )
