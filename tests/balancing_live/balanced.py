"""Three servers, and proxies in front of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from bench.balancing.load import Outcome, offered
from bench.balancing.proxies import Proxy, patient, running
from bench.balancing.replicas import Replica, answered, replicas, start_all
from bench.serving.starting import free_ports
from opara_client.channel import Options

QUEUE_DELAY_US = 30_000  # so that there are requests in flight at any time
DRAIN_S = 8  # in which a patient HAProxy has asked three times, and waited each time
MOST_OPEN = 200  # requests of a client: the servers' queues have room for those of two, paused for however long
THIRD, QUARTER = 1 / 3, 0.25
WINDOW = 450  # requests, of which each server's share is told
PATIENCE_S = 120.0


@asynccontextmanager
async def three_servers(folder: Path, *options: str) -> AsyncIterator[list[Replica]]:
    """All ready. They share a port, at addresses of their own, as pods do."""
    port, *metrics = free_ports(4)
    addresses = [f"127.0.0.{host}:{port}" for host in (2, 3, 4)]
    pages = [f"127.0.0.1:{page}" for page in metrics]
    everything = (f"--drain-delay={DRAIN_S}", "--listen-when-ready", *options)
    async with replicas(addresses, pages, folder, everything, delay_us=QUEUE_DELAY_US) as made:
        await start_all(made)
        yield made


def behind(proxy: Proxy, servers: Sequence[Replica], folder: Path) -> AbstractAsyncContextManager[str]:
    """Its address; the test is skipped where the proxy is not installed."""
    if proxy.program() is None:
        pytest.skip(f"{proxy.name} is not installed")
    addresses = [server.address for server in servers]
    return running(proxy, free_ports(1)[0], addresses, folder, patient)


def calls(target: str, rate: float, connections: int, options: Options = ()) -> AbstractAsyncContextManager[Outcome]:
    """A load, of no more than the servers can queue: see ``offered``."""
    return offered(target, rate, connections, options, MOST_OPEN)


async def until(condition: Callable[[], bool]) -> None:
    """It holds. Fails where it does not within PATIENCE_S."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.01)


async def spread(servers: Sequence[Replica], within: Callable[[list[float]], bool]) -> None:
    """Until the servers' shares of WINDOW requests or more are ``within`` what they should be: once connections are
    made anew, or checked, where that takes its time. Fails where they are not within PATIENCE_S."""
    end, found = time.monotonic() + PATIENCE_S, list[float]()
    while not (found and within(found)):
        before, since = await answered(servers), [0]
        while sum(since) < WINDOW:
            assert time.monotonic() < end, f"shares of {found}, {since} since"
            await asyncio.sleep(0.1)
            since = [now - then for now, then in zip(await answered(servers), before, strict=True)]
        found = [count / sum(since) for count in since]


async def spread_as(servers: Sequence[Replica], expected: Sequence[float]) -> None:
    """But for a quarter: who is the least busy of them is chance, and the machine's affair."""
    await spread(servers, lambda found: found == pytest.approx(expected, rel=QUARTER))
