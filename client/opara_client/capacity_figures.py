"""What a replica is, from what was measured of one: its metrics, and what ``opara-client perf`` saw of it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from opara_client.capacity_model import ReplicaModel
from opara_client.inputs import InputError

TIMEOUT_S = 10.0
US = 1e-6
_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>[-+\w.]*\d|NaN|[-+]Inf)(?: |$)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Samples = Mapping[tuple[str, str], float]
"""Values of one model's metrics, and of the process, by name and bucket; added up over all other labels."""


def samples(exposition: str, model: str) -> Samples:
    """Of Prometheus' text format; raises InputError for another."""
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for line in exposition.splitlines():
        if not line or line.startswith("#"):
            continue
        sample = _SAMPLE.match(line)
        if sample is None:
            raise InputError(f"--metrics: not Prometheus' text format: {line[:100]!r}")
        labels = dict(_LABEL.findall(sample["labels"] or ""))
        if labels.get("model", model) == model and labels.get("code", "OK") == "OK":
            found[sample["name"], labels.get("bucket", "")] += float(sample["value"])
    return found


def between(earlier: Samples, later: Samples) -> Samples:
    """What came in between, of what is counted."""
    return {key: value - earlier.get(key, 0.0) for key, value in later.items()}


def from_metrics(expositions: Sequence[str], model: str) -> ReplicaModel:
    """Of one: since the server's start. Of two: in between, with the processor time that a request takes, which is its
    front's where the device is not the processor. Raises InputError where nothing was counted."""
    found = samples(expositions[-1], model)
    if len(expositions) == 2:
        found = between(samples(expositions[0], model), found)
    copies = sum(_mean(found, f"opara_copy_{way}_seconds", "") for way in ("in", "out"))
    batches = {bucket: count for (name, bucket), count in found.items() if name == "opara_replay_seconds_count"}
    buckets = {int(bucket) for bucket, count in batches.items() if count > 0}
    requests = found.get(("opara_requests_total", ""), 0.0)
    if not buckets or requests <= 0:
        between_them = " in between: the file from before the load comes first" if len(expositions) == 2 else ""
        raise InputError(f"--metrics: no batch of a model {model!r} was counted{between_them}")
    return ReplicaModel(
        batch_s={bucket: copies + _mean(found, "opara_replay_seconds", str(bucket)) for bucket in buckets},
        front_s=found[("process_cpu_seconds_total", "")] / requests if len(expositions) == 2 else 0.0,
        rows=max(1, round(found[("opara_rows_total", "")] / requests)),
    )


def _mean(found: Samples, name: str, bucket: str) -> float:
    return found.get((f"{name}_sum", bucket), 0.0) / max(1.0, found.get((f"{name}_count", bucket), 0.0))


def with_perf(model: ReplicaModel, report: Mapping[str, Any]) -> ReplicaModel:
    """The same with what ``opara-client perf --json`` saw of one replica with closed loops.

    One caller: what is neither batch nor front, by the median. At least two full batches of callers, so that every
    batch is full: what a batch takes beside what the device's clock says, for each of its rows.
    """
    closed = [run for run in report["runs"] if run["mode"] == "closed"]
    model = replace(model, rows=report["rows"])
    full, full_s = model.batches[-1]
    most = max((run["answers_per_s"] for run in closed if run["concurrency"] >= 2 * full), default=0.0)
    if most:
        row_s = max(0.0, full / most - full_s) / (full * model.rows)
        model = replace(model, batch_s={bucket: time + row_s * bucket for bucket, time in model.batch_s.items()})
    lone = [run["latency_us"]["percentiles"]["p50"] * US for run in closed if run["concurrency"] == 1]
    return replace(model, base_s=max(0.0, min(lone) - model.lone_s)) if lone else model


def read_metrics(place: str) -> str:
    """A file, or what a server answers. Raises InputError."""
    try:
        if place.startswith(("http://", "https://")):
            with urlopen(place, timeout=TIMEOUT_S) as answer:
                text: str = answer.read().decode()
                return text
        return Path(place).read_text(encoding="utf-8")
    except (OSError, URLError, UnicodeDecodeError) as error:
        raise InputError(f"--metrics {place}: {error}") from error


def read_perf(path: Path) -> Mapping[str, Any]:
    """What ``opara-client perf --json`` printed. Raises InputError."""
    try:
        report: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"rows", "runs"} <= report.keys():
            raise InputError(f"--perf {path}: not what opara-client perf --json prints")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"--perf {path}: {error}") from error
    return report
