"""What the status page shows of models: states, plans with what was measured, and the last traced replay.

Nothing in it that a port without tokens should not tell: no paths, no exceptions' texts, no weights. Sizes are bounded
by the models' batch sizes and candidates, and by observe.occupancy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from opara_server.engine.plan import BEYOND_BUDGET, BucketPlan, Candidate
from opara_server.observe.exposition import Content, Page
from opara_server.observe.occupancy import Sample
from opara_server.observe.page import status_page
from opara_server.serving.errors import ModelNotFound
from opara_server.serving.models import ModelDescription, ModelState
from opara_server.serving.registry import Registry
from opara_server.version import VERSION


def pages(registry: Registry) -> dict[str, Page]:
    """By path: the page itself, and what it asks for."""
    home = status_page()

    def overview(_query: Mapping[str, str]) -> Content:
        models = [_model(registry, registry.describe(name)) for name, _ in registry.models()]
        return _json({"version": VERSION, "models": models})

    def bucket(query: Mapping[str, str]) -> Content | None:
        try:
            plan = registry.describe(query["model"]).plan
            found = plan.bucket(int(query["batch_size"])) if plan else None
        except (ModelNotFound, KeyError, ValueError):
            return None
        if found is None:
            return None
        return _json(_bucket(found, registry.samples(query["model"]).get(found.batch_size)))

    return {"/": lambda _query: home, "/status.json": overview, "/bucket.json": bucket}


def _model(registry: Registry, model: ModelDescription) -> dict[str, Any]:
    known: dict[str, Any] = {"name": model.name, "state": model.state, "reason": model.told}
    if model.plan is None or model.state is not ModelState.READY:
        return known
    samples = registry.samples(model.name)
    buckets = [_summary(bucket, samples.get(bucket.batch_size)) for bucket in model.plan.buckets]
    device = {"device": model.plan.device, "device_name": model.plan.device_name}
    return known | device | {"fallback": bool(model.plan.fallback_reason), "buckets": buckets}


_SUMMARY = (
    "batch_size",
    "policy",
    "compact",
    "lowering",
    "operators",
    "streams",
    "synchronisations",
    "measured_us",
    "sequential_us",
    "reused",
)


def _summary(bucket: BucketPlan, sample: Sample | None) -> dict[str, Any]:
    return {name: getattr(bucket, name) for name in _SUMMARY} | {"sampled_at": sample and sample.at}


def _bucket(bucket: BucketPlan, sample: Sample | None) -> dict[str, Any]:
    keys = [candidate.key for candidate in bucket.candidates]
    chosen = keys.index(bucket.key) if bucket.key in keys else None
    return {
        "candidates": [_candidate(candidate) for candidate in bucket.candidates],
        "chosen": chosen,
        "sample": sample and _sample(sample),
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    known = asdict(candidate)
    rejected = known.pop("rejected")  # an exception's text may be in it
    return known | {"outcome": "refused" if candidate.given_up else "not measured" if rejected == BEYOND_BUDGET else ""}


def _sample(sample: Sample) -> dict[str, Any]:
    seen = sample.occupancy
    known = {name: getattr(sample, name) for name in ("at", "replays", "seconds", "omitted")}
    measured = {name: getattr(seen, name) for name in ("span_us", "concurrency", "stream_busy", "busy_us")}
    return known | measured | {"timeline": [asdict(interval) for interval in sample.timeline]}


def _json(value: object) -> Content:
    return Content("application/json", json.dumps(value, separators=(",", ":")).encode())
