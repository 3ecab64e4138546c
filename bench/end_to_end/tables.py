"""The report of ``bench.end_to_end``. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.tables import markdown

Found = Mapping[str, Any]
NETWORK = "no model"  # how the titles of servers begin that only answer


@dataclass(frozen=True)
class Limits:
    """What bounds a server of one workload: a batch and a call in µs; the graph, and the lesser of that and the
    network, in rows a second."""

    bare_us: float
    network_us: float
    bare_rows: float
    lesser_rows: float


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
        "most. *No model*: a bare server of gRPC's completion queue that takes the same requests and answers as many "
        "zeros; *over both*: p50 less the bare batch's and less that of *no model*; *h2load's p50*: one caller's, too, "
        "but of a client in C, the others' is gRPC's in Python; *of the lesser*: rows a second "
        "over those of the graph or of the fastest *no model*, whichever are fewer. *Idle*: the device's time outside "
        "of replays, as a share of that in them. *Cores*: that the server kept busy meanwhile, all its processes and "
        "the busiest of them. *Error*: the largest distance of sampled answers from the eager "
        "server's, over these answers' own norm. *Sent late*: Poisson requests that had to wait for the generator; "
        "where it is busy all the time, latencies are its own.",
    ]
    parts = [_workload(name, one) for name, one in found["workloads"].items()]
    return "\n\n".join([*head, *parts]) + "\n"


def _workload(name: str, found: Found) -> str:
    buckets, lanes = found["bare"]["buckets"], found["bare"]["lanes"]
    most = max(one["rows_per_s"] for one in buckets.values())
    fitting = next(one for size, one in buckets.items() if int(size) >= _rows(name) or int(size) == int([*buckets][-1]))
    bounds = [title for title in found["one caller"] if title.startswith(NETWORK) and found["saturated"][title]]
    network_us = min((_p50(found, title) for title in bounds), default=0.0)
    lesser = min([most, *([max(_rows_per_s(found, title) for title in bounds)] if bounds else [])])
    limits = Limits(fitting["alone_us"], network_us, most, lesser)
    compared = [_server(title, found, limits) for title in found["one caller"]]
    columns = ["server", "one caller p50 µs", "p99 µs", "p50 over bare µs", "over both µs", "h2load's p50 µs"]
    columns += ["requests/s", "rows/s", "of bare", "of the lesser", "idle", "cores", "error"]
    sections = [
        f"## {name}",
        f"Bare: {fitting['alone_us']:.0f} µs (copy in {fitting['copy_in_us']:.0f}, replay {fitting['replay_us']:.0f}, "
        f"copy out {fitting['copy_out_us']:.0f}); {most:,.0f} rows/s.",
        markdown(columns, compared),
        _shared(buckets),
        "The engine in one process, without a network; requests in pageable memory, and in pinned memory as workers "
        "hand them over:",
        markdown(
            ["lanes", "rows/s", "of bare", "idle", "pinned: rows/s", "of bare", "idle"],
            [(count, *_rate(one, most), *_rate(found["bare"]["pinned"][count], most)) for count, one in lanes.items()],
        ),
    ]
    for title, curve in found["open loop"].items():
        columns = ["requests/s", "p50 µs", "p99 µs", "p99 over p50", "failed", "sent late", "generator busy"]
        sections += [f"Poisson requests, {title}:", markdown(columns, [_offered(one) for one in curve])]
    return "\n\n".join(sections)


def _offered(one: Found) -> tuple[str, ...]:
    p50, p99 = one["p50_us"], one["p99_us"]
    return (
        f"{one['rate']:,.0f}",
        *((f"{p50:,.0f}", f"{p99:,.0f}", f"{p99 / p50:.1f}") if p50 else ("–",) * 3),
        f"{one['failed']:,}",
        f"{one['held']:,}",
        f"{one['generator_busy']:.0%}",
    )


def _shared(buckets: Found) -> str:
    size, one = max(buckets.items(), key=lambda item: float(item[1]["rows_per_s"]))
    copies, beside = one["beside_us"] - one["straight_us"], one["beside_us"]
    return (
        f"Lanes share the graphs. Of {beside:.0f} µs that a batch of {size} has of the device's main queue beside "
        f"others, {copies:.0f} µs ({copies / beside:.1%}) are copies between its lane's buffers and the graph's: no "
        "more could be saved by graphs of each lane's own."
    )


def _server(title: str, found: Found, limits: Limits) -> tuple[str, ...]:
    latency, rates = found["one caller"][title], found["saturated"][title]
    if not latency or not rates:
        return (title, *("–",) * 12)
    p50, rows = _p50(found, title), _rows_per_s(found, title)
    idle = [one["idle_over_replay"] for one in rates if "idle_over_replay" in one]
    cores = [(one["cores"], one["cores_of_busiest"]) for one in rates if "cores" in one]
    quick = [one["h2load_p50_us"] for one in latency if "h2load_p50_us" in one]
    error = found["error"].get(title)
    alone = title.startswith(NETWORK)
    return (
        title,
        f"{p50:,.0f}",
        f"{median(one['p99_us'] for one in latency):,.0f}",
        "–" if alone else f"{p50 - limits.bare_us:,.0f}",
        "–" if alone else f"{p50 - limits.bare_us - limits.network_us:,.0f}",
        f"{median(quick):,.0f}" if quick else "–",
        f"{median(one['requests_per_s'] for one in rates):,.0f}",
        f"{rows:,.0f}",
        f"{rows / limits.bare_rows:.0%}",
        f"{rows / limits.lesser_rows:.0%}",
        f"{median(idle):.0%}" if idle else "–",
        f"{median(whole for whole, _ in cores):.1f}, {median(most for _, most in cores):.1f}" if cores else "–",
        "–" if error is None else f"{error:.0e}",
    )


def _p50(found: Found, title: str) -> float:
    return float(median(one["p50_us"] for one in found["one caller"][title]))


def _rows_per_s(found: Found, title: str) -> float:
    return float(median(one["rows_per_s"] for one in found["saturated"][title]))


def _rate(one: Found, most: float) -> tuple[str, str, str]:
    return f"{one['rows_per_s']:,.0f}", f"{one['rows_per_s'] / most:.0%}", f"{one['idle_over_replay']:.0%}"


def _rows(name: str) -> int:
    return int(name.rpartition(", ")[2].split()[0])
