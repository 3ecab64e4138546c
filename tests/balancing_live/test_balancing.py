"""Three servers behind the proxies of deploy/proxies: how calls spread, and what a restart costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bench.balancing.load import RETRIES_OFF, offered
from bench.balancing.proxies import ENVOY, HAPROXY, NGINX, Proxy
from bench.balancing.replicas import Replica
from tests.balancing_live.balanced import THIRD, behind, spread_as, three_servers

HELD_S = 0.5  # in which a third of 150 requests/s come to the server that is killed
NOTICED_S = 1.0  # in which Envoy has seen its connection end

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Replica]]:
    async with three_servers(tmp_path_factory.mktemp("servers")) as ready:
        yield ready


@pytest.mark.parametrize("proxy", [ENVOY, NGINX, HAPROXY], ids=lambda proxy: proxy.name)
async def test_calls_of_one_client_spread_evenly(servers: list[Replica], proxy: Proxy, tmp_path: Path) -> None:
    async with behind(proxy, servers, tmp_path) as target:
        async with offered(target, rate=300, connections=1, options=RETRIES_OFF) as outcome:
            await spread_as(servers, [THIRD] * 3)
        assert (outcome.codes(), outcome.wrong) == ({}, 0)


@pytest.mark.parametrize("proxy", [ENVOY, NGINX, HAPROXY], ids=lambda proxy: proxy.name)
async def test_a_restart_fails_no_request(servers: list[Replica], proxy: Proxy, tmp_path: Path) -> None:
    async with behind(proxy, servers, tmp_path) as target, offered(target, rate=300, connections=4) as outcome:
        await asyncio.sleep(0.5)
        await servers[1].stop()
        await servers[1].start()
        await asyncio.sleep(1)
    assert (outcome.codes(), outcome.wrong) == ({}, 0)


async def test_with_a_server_that_is_killed_only_what_it_had_in_flight_fails(
    servers: list[Replica], tmp_path: Path
) -> None:
    async with (
        behind(ENVOY, servers, tmp_path) as target,
        offered(target, rate=150, connections=2) as outcome,
        offered(target, rate=150, connections=2, options=RETRIES_OFF) as without,
    ):
        await spread_as(servers, [THIRD] * 3)
        with servers[0].stopped():
            await asyncio.sleep(HELD_S)  # what it is sent is in flight when it dies
            begun = time.monotonic()
            await servers[0].kill()
        gone = time.monotonic()
        await asyncio.sleep(NOTICED_S + 1)
    await servers[0].start()
    assert outcome.codes() == {}
    assert without.failures
    for failure in without.failures:
        assert "connection termination" in failure.details, failure
        assert failure.ended > begun, failure
        assert failure.begun < gone + NOTICED_S, failure
