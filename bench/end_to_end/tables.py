"""The report of ``bench.end_to_end``. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from bench.tables import markdown

Found = Mapping[str, Any]


def report(found: Found) -> str:
    said = "; ".join(f"{name} {value}" for name, value in found["environment"].items())
    settings = "; ".join(f"{name} {value}" for name, value in found["settings"].items())
    cores = found["cores"]
    head = [
        "# From a call to its answer",
        f"{said}.",
        f"{settings}; {cores['server']} cores for each server, {cores['generator']} for the load generator.",
        "*Bare*: one batch by the engine alone, from its bytes to its answer's, with copies and no network; *of bare*: "
        "rows a second over those of the graph replayed back to back, without copies, at the batch size where that is "
        "most. *Idle*: the device's time outside of replays, as a share of that in them. *Error*: the largest distance "
        "of sampled answers from the eager server's, over these answers' own norm.",
    ]
    parts = [_workload(name, one) for name, one in found["workloads"].items()]
    return "\n\n".join([*head, *parts]) + "\n"


def _workload(name: str, found: Found) -> str:
    buckets, lanes = found["bare"]["buckets"], found["bare"]["lanes"]
    most = max(one["rows_per_s"] for one in buckets.values())
    fitting = next(one for size, one in buckets.items() if int(size) >= _rows(name) or int(size) == int([*buckets][-1]))
    compared = [_server(title, found, most, fitting["alone_us"]) for title in found["one caller"]]
    columns = ["server", "one caller p50 µs", "p99 µs", "p50 over bare µs"]
    columns += ["requests/s", "rows/s", "of bare", "idle", "error"]
    sections = [
        f"## {name}",
        f"Bare: {fitting['alone_us']:.0f} µs (copy in {fitting['copy_in_us']:.0f}, replay {fitting['replay_us']:.0f}, "
        f"copy out {fitting['copy_out_us']:.0f}); {most:,.0f} rows/s.",
        markdown(columns, compared),
        "The engine in one process, without a network:",
        markdown(
            ["lanes", "rows/s", "of bare", "idle"],
            [
                (count, f"{one['rows_per_s']:,.0f}", f"{one['rows_per_s'] / most:.0%}", _share(one))
                for count, one in lanes.items()
            ],
        ),
    ]
    for title, curve in found["open loop"].items():
        rows = [
            (
                f"{one['rate']:,.0f}",
                f"{one['p50_us']:,.0f}",
                f"{one['p99_us']:,.0f}",
                f"{one['p99_us'] / one['p50_us']:.1f}",
            )
            for one in curve
            if not one["failed"] and one["p50_us"]
        ]
        sections += [f"Poisson requests, {title}:", markdown(["requests/s", "p50 µs", "p99 µs", "p99 over p50"], rows)]
    return "\n\n".join(sections)


def _server(title: str, found: Found, most: float, alone_us: float) -> tuple[str, ...]:
    latency, rates = found["one caller"][title], found["saturated"][title]
    if not latency or not rates:
        return (title, *("–",) * 8)
    p50 = median(one["p50_us"] for one in latency)
    rows = median(one["rows_per_s"] for one in rates)
    idle = [one for one in rates if "idle_over_replay" in one]
    return (
        title,
        f"{p50:,.0f}",
        f"{median(one['p99_us'] for one in latency):,.0f}",
        f"{p50 - alone_us:,.0f}",
        f"{median(one['requests_per_s'] for one in rates):,.0f}",
        f"{rows:,.0f}",
        f"{rows / most:.0%}",
        f"{median(one['idle_over_replay'] for one in idle):.0%}" if idle else "–",
        "–" if found["error"][title] is None else f"{found['error'][title]:.0e}",
    )


def _share(one: Found) -> str:
    return f"{one['idle_over_replay']:.0%}"


def _rows(name: str) -> int:
    return int(name.rpartition(", ")[2].split()[0])
