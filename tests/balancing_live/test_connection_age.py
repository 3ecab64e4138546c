"""Clients that stay connected: how they come to servers that were added later."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bench.balancing.names import named
from bench.balancing.proxies import HAPROXY_TCP
from bench.balancing.replicas import Replica
from opara_client.channel import Options
from tests.balancing_live.balanced import THIRD, behind, calls, spread, spread_as, three_servers

pytestmark = pytest.mark.asyncio(loop_scope="module")

AGE_S = 2.0
# Calls are not tried again, but for those that never left the client: gRPC gives some to a connection that has just
# been told that it has reached its age.
NO_POLICY: Options = (("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),)
RESOLVE_OFTEN: Options = (("grpc.dns_min_time_between_resolutions_ms", 200),)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Replica]]:
    async with three_servers(tmp_path_factory.mktemp("servers"), f"--max-connection-age={AGE_S}") as ready:
        yield ready


async def test_a_client_of_a_name_finds_new_addresses_when_its_connections_reach_their_age(
    servers: list[Replica],
) -> None:
    hosts, port = [server.address.split(":")[0] for server in servers], servers[0].address.split(":")[1]
    async with named(hosts[:2]) as names:
        target, options = f"dns://{names.address}/servers.test:{port}", (*NO_POLICY, *RESOLVE_OFTEN)
        async with calls(target, rate=300, connections=2, options=options) as outcome:
            await spread_as(servers, [0.5, 0.5, 0])
            names.addresses = hosts
            await spread_as(servers, [THIRD] * 3)
    assert (outcome.codes(), outcome.wrong) == ({}, 0)


async def test_connections_through_a_tcp_balancer_reach_a_new_server_when_they_reach_their_age(
    servers: list[Replica], tmp_path: Path
) -> None:
    await servers[2].stop()
    async with (
        behind(HAPROXY_TCP, servers, tmp_path) as target,
        calls(target, rate=300, connections=12, options=NO_POLICY) as outcome,
    ):
        await servers[2].start()
        # Of 12 connections 3 to 5, and some that are being replaced.
        await spread(servers, lambda found: 0.5 * THIRD < found[2] < 1.5 * THIRD)
    assert (outcome.codes(), outcome.wrong) == ({}, 0)
