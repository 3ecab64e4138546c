"""docs/metrics.md, from the metrics themselves: ``python -m opara_server.observe.reference FILE`` writes it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from opara_server.observe.declared import Declared
from opara_server.observe.gpu import GPU_METRICS
from opara_server.observe.metrics import FORESEEN, REASONS, UNKNOWN_MODEL, Metrics

LABELS = {
    "model": f"a folder of the repository; whatever else clients name counts as `{UNKNOWN_MODEL}`",
    "bucket": "a captured batch size of the model: `batch_sizes` in its model.toml",
    "code": f"the name of a gRPC status code; as 0 from the start: {', '.join(f'`{code}`' for code in FORESEEN)}",
    "reason": ", ".join(f"`{reason}`" for reason in dict.fromkeys(REASONS.values())),
    "policy": "the schedule's policy, `urgent(POLICY)` where its longest path has priority",
    "stream": "a number from 0, below the schedule's number of streams",
    "busy": "a number from 0 up to the schedule's number of streams",
    "cause": "`ended` by itself or by others, `silent`: it did not answer, `broken`: it sent nonsense",
    "gpu_uuid": "the GPU that the models run on: `GPU-...`, or its MIG slice: `MIG-...`",
    "version": "of opara-serve",
    "torch": "version",
    "grpc": "version",
}
HEAD = """\
# Metrics

What `/metrics` of the metrics port gives to Prometheus. Written by `make metrics-doc` from the code; a test compares.

Base units: seconds, bytes, shares from 0 to 1. Counters end in `_total`; a histogram `NAME` is kept as `NAME_bucket`,
`NAME_sum` and `NAME_count`, and its percentiles can be taken over models and pods. Labels are bounded: nothing that a
client sends becomes a label's value. With `serve --tracing` buckets of histograms carry the trace of a sampled
request as an exemplar, for those that ask for OpenMetrics. What a machine does not tell is absent, not zero:
`nv_gpu_*` and `opara_gpu_*` without a GPU, those of multiprocessors (`opara_gpu_sm_*`) before Hopper, of a MIG slice
its utilisation and power (memory and multiprocessors are the slice's own), everything about streams where replays
cannot be traced. Gauges of a model are of what serves: those of batch sizes that it has no more are gone, and all of
them when it is unloaded; what was counted stays.
"""
FOOT = """
The GPU is read when Prometheus asks, once a second at most, by the thread that answers it; the `nv_gpu_*` names are
Triton's. Streams are measured on a few traced replays: when a model is loaded or improved, when `opara-client profile`
asks (`serve --admin`), and regularly with `--sample-streams-every`. With `--workers` the `process_*` metrics are those
of the engine's process; all others cover all processes.
"""


def page(metrics: Metrics) -> str:
    """The whole page, in Markdown."""
    declared = [*metrics.declared, *GPU_METRICS]
    lines = [
        "",
        "| metric | kind | labels | what it says |",
        "|---|---|---|---|",
        *map(_row, declared),
        *_process(metrics),
    ]
    used = dict.fromkeys(label for metric in declared for label in metric.labels)
    lines += ["", "| label | values |", "|---|---|", *(f"| `{label}` | {LABELS[label]} |" for label in used)]
    bounds = {metric.bounds: metric.name for metric in reversed(declared) if metric.bounds}
    lines += ["", "| histograms like | bounds of their buckets |", "|---|---|"]
    lines += [f"| `{name}` | {', '.join(map(_time, bound))} |" for bound, name in reversed(bounds.items())]
    return HEAD + "\n".join(lines) + "\n" + FOOT


def _row(metric: Declared) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.text} |"


def _process(metrics: Metrics) -> Iterable[str]:
    """Those that prometheus_client gives for every process."""
    for family in metrics.registry.collect():
        if family.name.startswith("process_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            yield _row(Declared(name, "counter" if family.type == "counter" else "gauge", family.documentation))


def _time(seconds: float) -> str:
    unit, scale = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e3)) if seconds * s >= 0.999), ("µs", 1e6))
    return f"{seconds * scale:g} {unit}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(Metrics()))
