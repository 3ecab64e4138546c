"""Three servers, and proxies in front of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from bench.balancing.proxies import Proxy, running
from bench.balancing.replicas import Replica, replicas, shares, start_all
from bench.serving.starting import free_ports

QUEUE_DELAY_US = 30_000  # so that there are requests in flight at any time
THIRD, TENTH = 1 / 3, 0.1
WINDOW_S = 1.5  # of requests, of which each server's share is told
PATIENCE_S = 60.0


@asynccontextmanager
async def three_servers(folder: Path, *options: str) -> AsyncIterator[list[Replica]]:
    """All ready. They share a port, at addresses of their own, as pods do."""
    port, *metrics = free_ports(4)
    addresses = [f"127.0.0.{host}:{port}" for host in (2, 3, 4)]
    pages = [f"127.0.0.1:{page}" for page in metrics]
    everything = ("--drain-delay=4", "--listen-when-ready", *options)
    async with replicas(addresses, pages, folder, everything, delay_us=QUEUE_DELAY_US) as made:
        await start_all(made)
        yield made


def behind(proxy: Proxy, servers: Sequence[Replica], folder: Path) -> AbstractAsyncContextManager[str]:
    """Its address; the test is skipped where the proxy is not installed."""
    if proxy.program() is None:
        pytest.skip(f"{proxy.name} is not installed")
    return running(proxy, free_ports(1)[0], [server.address for server in servers], folder)


async def spread(servers: Sequence[Replica], within: Callable[[list[float]], bool]) -> None:
    """Until the servers' shares of a window of requests are ``within`` what they should be: once connections are made
    anew, or checked, where that takes its time. Fails where they are not within PATIENCE_S."""
    end, found = time.monotonic() + PATIENCE_S, list[float]()
    while not (found and within(found)):
        assert time.monotonic() < end, f"shares of {found}"
        before = [await server.answered() for server in servers]
        await asyncio.sleep(WINDOW_S)
        found = await shares(servers, before)


async def spread_as(servers: Sequence[Replica], expected: Sequence[float]) -> None:
    """But for a tenth."""
    await spread(servers, lambda found: found == pytest.approx(expected, rel=TENTH))
