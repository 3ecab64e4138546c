"""How evenly calls are spread over three servers, behind each proxy of deploy/proxies that is installed and by a client
of a name.

    python -m bench.spread

One client at a constant rate: through a proxy over one connection, by a name over one to each server.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

from bench.balancing.load import RETRIES_OFF, offered
from bench.balancing.proxies import ENVOY, HAPROXY, NGINX, Proxy, version
from bench.balancing.replicas import answered, replicas, start_all
from bench.environment import environment
from bench.rolling_restart import NAME, QUEUE_DELAY_US, RESULTS, entrance
from bench.serving.starting import free_ports

SETTLE_S = 1.0  # until connections are made, and health has been asked for


def main(
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 300.0,
    seconds: float = 20.0,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Writes spread.json: by target, the requests that each server answered, and how far off a third they are."""
    targets = [*(proxy for proxy in (ENVOY, NGINX, HAPROXY) if proxy.program()), None]
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_measure(targets, rate, seconds, Path(folder)))
    settings = {"rate": rate, "seconds": seconds}
    result = {"environment": environment() | {"grpc": grpc.__version__}, "settings": settings, "behind": found}
    out.mkdir(parents=True, exist_ok=True)
    (out / "spread.json").write_text(json.dumps(result, indent=1) + "\n")


async def _measure(
    targets: Sequence[Proxy | None], rate: float, seconds: float, folder: Path
) -> dict[str, dict[str, Any]]:
    port, *metrics = free_ports(4)
    addresses = [f"127.0.0.{host}:{port}" for host in (2, 3, 4)]
    pages = [f"127.0.0.1:{page}" for page in metrics]
    found = {}
    async with replicas(addresses, pages, folder, ("--listen-when-ready",), delay_us=QUEUE_DELAY_US) as servers:
        await start_all(servers)
        for proxy in targets:
            async with (
                entrance(proxy, addresses, folder) as target,
                offered(target, rate, 1, RETRIES_OFF) as outcome,
            ):
                await asyncio.sleep(SETTLE_S)
                before = await answered(servers)
                await asyncio.sleep(seconds)
                after = await answered(servers)
            name = NAME if proxy is None else f"{proxy.name} {version(proxy)}"
            counts = [now - then for now, then in zip(after, before, strict=True)]
            found[name] = told(counts) | {"failed": len(outcome.failures)}
    return found


def told(counts: Sequence[int]) -> dict[str, Any]:
    """Of the requests that each server answered; ``farthest``: from the mean, as a share of it."""
    mean = sum(counts) / len(counts)
    return {"answered": list(counts), "farthest": round(max(abs(count / mean - 1) for count in counts), 4)}


if __name__ == "__main__":
    typer.run(main)
