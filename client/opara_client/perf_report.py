"""What a run of the load generator found, as values for JSON and as a table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from opara_client.perf_histogram import Histogram
from opara_client.perf_load import Closed, Load, Tally
from opara_client.wording import counted

PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
BUSY = 0.85  # of the time, or of the cores: hardly more is to be had from the generator
LATE_SHARE = 0.1  # of the latency's p99
LATE_US = 1000.0
HELD_SHARE = 0.01  # of the requests

WRONG = {
    "shape": "of other shapes",
    "values": "of other values (if they differ by rounding, give --tolerance)",
    "undecodable": "that cannot be decoded",
}
COUNTS_FROM = {
    "closed": "latency is service time, from sending to answer: a slow answer holds back its caller's next request, so "
    "users who do not wait for each other would see longer ones; measure those with --rate",
    "open": "latency counts from when a request was due, so time in which the generator could not send it is in it",
}


@dataclass(frozen=True, slots=True)
class Quantiles:
    """In µs; all 0 of no values. ``percentiles``: by name, as in ``"p99.9"``."""

    mean: float
    percentiles: dict[str, float]
    max: float


@dataclass(frozen=True, slots=True)
class Generator:
    """The load generator's own effort.

    ``loop_busy``: the share of the time in which the busiest process's event loop had something to do. ``cores_busy``:
    the share of the cores it may use that all its processes took. ``lag_us``: how late its timers were.
    """

    cpu_us_per_request: float
    loop_busy: float
    cores_busy: float
    lag_us: Quantiles


@dataclass(frozen=True, slots=True)
class Report:
    """``concurrency`` of a closed loop, or ``rate`` and so on of an open one; the others are None.

    ``sent``, ``answered``, ``failed``, ``wrong``, ``unsent``, ``held``: as in ``Tally``. ``answers_per_s``: OK, while
    measuring. ``latency_counts_from``: what the times mean. ``histogram``: of the latency, (µs at most, answers) of
    every bucket that was hit.
    """

    mode: str
    concurrency: int | None
    rate: float | None
    spacing: str | None
    burst: int | None
    max_in_flight: int | None
    processes: int
    connections: int
    warm_up_s: float
    duration_s: float
    timeout_s: float
    payloads: int
    request_bytes: int
    sent: int
    answered: int
    failed: dict[str, int]
    wrong: dict[str, int]
    unsent: int
    held: int
    answers_per_s: float
    latency_counts_from: str
    latency_us: Quantiles
    send_delay_us: Quantiles
    generator: Generator
    warnings: tuple[str, ...]
    histogram: tuple[tuple[float, int], ...]


def make_report(load: Load, processes: int, tally: Tally) -> Report:
    closed = load.pace if isinstance(load.pace, Closed) else None
    opened = load.pace if not isinstance(load.pace, Closed) else None
    mode = "closed" if closed else "open"
    generator = Generator(
        cpu_us_per_request=tally.cpu_s * 1e6 / max(1, tally.ended),
        loop_busy=tally.busiest,
        cores_busy=tally.cpu_s / load.duration_s / len(os.sched_getaffinity(0)),
        lag_us=quantiles(tally.lag),
    )
    latency = quantiles(tally.latency)
    return Report(
        mode=mode,
        concurrency=closed.concurrency if closed else None,
        rate=opened.arrivals.rate if opened else None,
        spacing=opened.arrivals.spacing if opened else None,
        burst=opened.arrivals.burst if opened else None,
        max_in_flight=opened.max_in_flight if opened else None,
        processes=processes,
        connections=load.connections,
        warm_up_s=load.warm_up_s,
        duration_s=load.duration_s,
        timeout_s=load.timeout_s,
        payloads=len(load.payloads),
        request_bytes=max(len(payload.request) for payload in load.payloads),
        sent=tally.sent,
        answered=tally.answered,
        failed=dict(tally.failed),
        wrong=dict(tally.wrong),
        unsent=tally.unsent,
        held=tally.held,
        answers_per_s=tally.finished / load.duration_s,
        latency_counts_from=COUNTS_FROM[mode],
        latency_us=latency,
        send_delay_us=quantiles(tally.send_delay),
        generator=generator,
        warnings=tuple(_warnings(tally, generator, latency)),
        histogram=tuple((upper / 1e3, count) for upper, count in tally.latency.buckets()),
    )


def quantiles(histogram: Histogram) -> Quantiles:
    values = {f"p{percent:g}": histogram.percentile(percent) / 1e3 for percent in PERCENTILES}
    return Quantiles(histogram.mean / 1e3, values, histogram.largest / 1e3)


def _warnings(tally: Tally, generator: Generator, latency: Quantiles) -> list[str]:
    found = []
    if tally.unsent:
        were = "request was" if tally.unsent == 1 else "requests were"
        found.append(f"{tally.unsent} {were} due and not sent in the time: more than server or generator could take")
    if tally.held > HELD_SHARE * tally.sent:
        were = "request was" if tally.held == 1 else "requests were"
        found.append(f"{tally.held} {were} held back by --max-in-flight: the server was overloaded")
    if generator.loop_busy > BUSY:
        found.append(f"the generator was the limit: an event loop of it was busy {generator.loop_busy:.0%} of the time")
    elif generator.cores_busy > BUSY:
        found.append(f"the generator was the limit: it used {generator.cores_busy:.0%} of the cores that it may use")
    late = generator.lag_us.percentiles["p99"]
    if late > max(LATE_US, LATE_SHARE * latency.percentiles["p99"]):
        found.append(f"latencies hold delays of the generator: 1 % of its timers were late by {late:.0f} µs or more")
    if 0 < tally.answered < 1000:
        found.append(f"p99.9 of {counted(tally.answered, 'answer')} is their maximum: measure longer")
    return found


def lines(reports: Sequence[Report]) -> list[str]:
    """A table with a line for each run, and what is to be said about them."""
    head = ("load", "sent", "OK", "failed", "wrong", "OK/s", *(f"p{percent:g}" for percent in PERCENTILES), "max")
    rows = [(*head, "generator"), *(_row(report) for report in reports)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    found = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    found.append(
        "latencies in µs; generator: µs of its processor time per request, share of the time its loop was busy"
    )
    found += [f"{mode} loop: {text}" for mode, text in COUNTS_FROM.items() if any(mode == r.mode for r in reports)]
    for report in reports:
        failed = ", ".join(f"{count} {code}" for code, count in sorted(report.failed.items()))
        wrong = ", ".join(f"{counted(count, 'answer')} {WRONG[kind]}" for kind, count in sorted(report.wrong.items()))
        said = [f"failed: {failed}"] * bool(failed) + [f"wrong: {wrong}"] * bool(wrong)
        found += [f"{load_name(report)}: {text}" for text in (*said, *(f"warning: {text}" for text in report.warnings))]
    return found


def _row(report: Report) -> tuple[str, ...]:
    latency, generator = report.latency_us, report.generator
    counts = (report.sent, report.answered, sum(report.failed.values()), sum(report.wrong.values()))
    times = (*latency.percentiles.values(), latency.max)
    effort = f"{generator.cpu_us_per_request:.0f} µs, {generator.loop_busy:.0%}"
    return (
        load_name(report),
        *map(str, counts),
        f"{report.answers_per_s:.1f}",
        *(f"{time:.0f}" if report.answered else "-" for time in times),
        effort,
    )


def load_name(report: Report) -> str:
    if report.mode == "closed":
        return counted(report.concurrency or 0, "caller")
    return f"{report.rate:g}/s"
