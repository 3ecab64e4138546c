"""Three servers behind the proxies of deploy/proxies: how calls spread, and what a restart costs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bench.balancing.load import RETRIES_OFF
from bench.balancing.proxies import ENVOY, HAPROXY, NGINX, Proxy
from bench.balancing.replicas import Replica
from tests.balancing_live.balanced import THIRD, behind, calls, spread, spread_as, three_servers, until

CONNECTIONS = 2
MANY = 100  # requests

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Replica]]:
    async with three_servers(tmp_path_factory.mktemp("servers")) as ready:
        yield ready


@pytest.mark.parametrize("proxy", [ENVOY, NGINX, HAPROXY], ids=lambda proxy: proxy.name)
async def test_calls_of_one_client_spread_evenly(servers: list[Replica], proxy: Proxy, tmp_path: Path) -> None:
    async with behind(proxy, servers, tmp_path) as target:
        async with calls(target, rate=300, connections=1, options=RETRIES_OFF) as outcome:
            await spread_as(servers, [THIRD] * 3)
        assert (outcome.codes(), outcome.wrong) == ({}, 0)


@pytest.mark.parametrize("proxy", [ENVOY, NGINX, HAPROXY], ids=lambda proxy: proxy.name)
async def test_a_restart_fails_no_request(servers: list[Replica], proxy: Proxy, tmp_path: Path) -> None:
    async with behind(proxy, servers, tmp_path) as target, calls(target, rate=300, connections=4) as outcome:
        await spread(servers, all)
        await servers[1].stop()
        await servers[1].start()
        await spread(servers, all)
    assert (outcome.codes(), outcome.wrong) == ({}, 0)


async def test_with_a_server_that_is_killed_only_what_it_had_in_flight_fails(
    servers: list[Replica], tmp_path: Path
) -> None:
    async with (
        behind(ENVOY, servers, tmp_path) as target,
        calls(target, rate=150, connections=CONNECTIONS) as outcome,
        calls(target, rate=150, connections=CONNECTIONS, options=RETRIES_OFF) as without,
    ):
        await spread(servers, all)
        with servers[0].stopped():
            await until(lambda: without.overtaken(MANY) >= 3)  # these are in flight when it dies
            assert not without.failures
            await servers[0].kill()
        gone = without.sent
        await until(lambda: without.over(gone, gone + CONNECTIONS))  # each of Envoy's threads has seen its own end
        noticed = without.sent
        await until(lambda: without.over(noticed, noticed + MANY))
    await servers[0].start()
    assert outcome.codes() == {}
    assert without.failures
    for failure in without.failures:
        assert "connection termination" in failure.details, failure
        assert failure.number < noticed, failure
