"""Real servers behind a real proxy, loaded by ``opara-client perf``: what a user can measure, of one and of several."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.balancing.proxies import Proxy, running
from bench.balancing.replicas import MODEL, Replica, replicas, start_all
from bench.capacity.models import BATCH_S
from bench.capacity.precedence import precedence
from bench.serving.starting import free_ports
from opara_client.capacity_figures import Samples, between, samples

CALLERS = (1, 2, 3, 5, 4 * max(BATCH_S))  # batches of every size, and full ones
CALIBRATION_S = 5.0
WARM_UP_S = 1.0
COMMAND = "import sys; from opara_client.cli import main; sys.exit(main())"
SOURCE = "bench.capacity.models:waiting"


class LoadError(Exception):
    """The load generator failed; str() says what it wrote."""


@asynccontextmanager
async def fleet(proxy: Proxy, count: int, folder: Path) -> AsyncIterator[tuple[str, list[Replica]]]:
    """``count`` servers that are ready, and the address of a proxy in front of them."""
    port, *pages = free_ports(1 + count)
    addresses = [f"127.0.0.{host}:{port}" for host in range(2, 2 + count)]
    metrics = [f"127.0.0.1:{page}" for page in pages]
    async with replicas(addresses, metrics, folder, (), source=SOURCE, batch_sizes=list(BATCH_S)) as servers:
        await start_all(servers)
        async with running(proxy, free_ports(1)[0], addresses, folder) as target:
            yield target, servers


async def calibrate(proxy: Proxy, folder: Path) -> dict[str, Any]:
    """Of one server: its metrics before and after closed loops, and what these saw."""
    async with fleet(proxy, 1, folder) as (target, (server,)):
        with precedence() as first:
            report, metrics = await _closed_loops(target, server)
    return {"precedence": first, "perf": report, "metrics": metrics}


async def _closed_loops(target: str, server: Replica) -> tuple[dict[str, Any], list[str]]:
    before = await asyncio.to_thread(server.exposition)
    callers = ",".join(map(str, CALLERS))
    report = await perf(target, "--concurrency", callers, "--duration", str(CALIBRATION_S))
    after = await asyncio.to_thread(server.exposition)
    return report, [_told(before), _told(after)]


def _told(exposition: str) -> str:
    """What the capacity model reads of it."""
    names = ("opara_replay_seconds", "opara_copy", "opara_requests", "opara_rows", "process_cpu")
    lines = (line for line in exposition.splitlines() if line.startswith(names) and "_bucket{" not in line)
    return "\n".join(lines)


async def load(
    proxy: Proxy, count: int, rates: Sequence[float], duration_s: float, seed: int, folder: Path
) -> list[dict[str, Any]]:
    """Open loops of Poisson arrivals at each of ``rates``, requests/s of all servers together."""
    async with fleet(proxy, count, folder) as (target, servers):
        with precedence() as first:
            options = ("--duration", str(duration_s), "--seed", str(seed))
            return [{**await _open_loop(target, servers, rate, options), "precedence": first} for rate in rates]


async def _open_loop(target: str, servers: Sequence[Replica], rate: float, options: Sequence[str]) -> dict[str, Any]:
    before = await _counted(servers)
    (run,) = (await perf(target, "--rate", str(rate), *options))["runs"]
    return _point(run, [between(*counts) for counts in zip(before, await _counted(servers), strict=True)])


async def perf(target: str, *options: str) -> dict[str, Any]:
    """What ``opara-client perf --json`` prints. Raises LoadError."""
    words = ("perf", MODEL, "--target", target, "--warm-up", str(WARM_UP_S), "--json", *options)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", COMMAND, *words, stdout=PIPE, stderr=PIPE, env=os.environ
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise LoadError(errors.decode()[-1000:])
    report: dict[str, Any] = json.loads(output)
    for run in report["runs"]:
        del run["histogram"]
    return report


async def _counted(servers: Sequence[Replica]) -> list[Samples]:
    pages = await asyncio.gather(*(asyncio.to_thread(server.exposition) for server in servers))
    return [samples(page, MODEL) for page in pages]


def _point(run: dict[str, Any], since: Sequence[Samples]) -> dict[str, Any]:
    """``queue_ms``: mean wait for a batch, as the servers' metrics have it, warm-up included."""

    def total(name: str) -> float:
        return sum(found.get((name, ""), 0.0) for found in since)

    answered = total("opara_requests_total")
    return {
        "rate": run["rate"],
        "answers_per_s": round(run["answers_per_s"], 1),
        "answered": run["answered"],
        "failed": run["failed"],
        "p50_ms": run["latency_us"]["percentiles"]["p50"] / 1e3,
        "p99_ms": run["latency_us"]["percentiles"]["p99"] / 1e3,
        "queue_ms": 1e3 * total("opara_queue_seconds_sum") / total("opara_queue_seconds_count"),
        "cpu_us_per_request": 1e6 * total("process_cpu_seconds_total") / answered,
        "requests_per_batch": answered / total("opara_batches_total"),
        "busiest": max(found[("opara_requests_total", "")] for found in since) / answered,
        "generator_busy": round(run["generator"]["loop_busy"], 3),
        "warnings": list(run["warnings"]),
    }
