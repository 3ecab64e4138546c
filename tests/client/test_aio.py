"""The asyncio client has the surface of the synchronous one, and tasks that are cancelled free the server."""

from __future__ import annotations

import asyncio
import inspect

import numpy as np
import pytest

from opara_client import (
    AsyncOparaClient,
    DeadlineExceeded,
    HealthStatus,
    InvalidArgument,
    ModelState,
    NotFound,
    OparaClient,
    Unavailable,
)
from tests.client.fake_server import PATIENCE_S, FakeServer

X = np.array([[1, 2], [3, 4]], np.float32)


def test_both_clients_have_the_same_methods_and_arguments() -> None:
    def surface(cls: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(cls, inspect.isfunction)
            if name == "__init__" or not name.startswith("_")
        }

    assert surface(AsyncOparaClient) == surface(OparaClient)


async def test_many_at_once(aclient: AsyncOparaClient) -> None:
    batches = [np.full((1, 2), n, np.float32) for n in range(100)]
    results = await asyncio.gather(
        *(aclient.infer("double", {"x": batch}, id=str(n)) for n, batch in enumerate(batches))
    )
    for n, result in enumerate(results):
        assert result.id == str(n)
        np.testing.assert_array_equal(result["x"], batches[n] * 2)


async def test_descriptions_and_health(aclient: AsyncOparaClient) -> None:
    await aclient.wait_ready(PATIENCE_S)
    assert {status.name: status.state for status in await aclient.models()}["double"] is ModelState.READY
    assert (await aclient.model("double")).inputs[0].dtype == "float32"
    assert await aclient.health() is HealthStatus.SERVING


async def test_a_profile(aclient: AsyncOparaClient) -> None:
    assert [profile.batch_size for profile in await aclient.profile("double")] == [1, 8]
    (profile,) = await aclient.profile("double", 1)
    assert (profile.batch_size, profile.concurrency) == (1, 1.5)


async def test_errors_are_the_same(server: FakeServer, aclient: AsyncOparaClient) -> None:
    with pytest.raises(NotFound, match="no model"):
        await aclient.infer("nobody", {"x": X})
    with pytest.raises(InvalidArgument, match="expected float32, got float64"):
        await aclient.infer("double", {"x": X.astype(np.float64)})
    timeout = 0.5
    while not server.seen.entered.is_set():  # where it passes on the way there, another call has twice the time
        timeout *= 2
        with pytest.raises(DeadlineExceeded):
            await aclient.infer("slow", {"x": X}, timeout=timeout)
    with pytest.raises(NotFound):
        await aclient.health("nobody")
    assert await asyncio.to_thread(server.seen.left.wait, PATIENCE_S)


async def test_a_cancelled_task_frees_the_server(server: FakeServer, aclient: AsyncOparaClient) -> None:
    task = asyncio.create_task(aclient.infer("slow", {"x": X}))
    assert await asyncio.to_thread(server.seen.entered.wait, PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(server.seen.left.wait, PATIENCE_S)
    np.testing.assert_array_equal((await aclient.infer("double", {"x": X}))["x"], X * 2)
    assert server.seen.calls["Infer"] == 2  # what the caller cancels is not tried again


async def test_closing_ends_what_is_in_flight(server: FakeServer) -> None:
    client = AsyncOparaClient(server.target, timeout=PATIENCE_S)
    task = asyncio.create_task(client.infer("slow", {"x": X}))
    assert await asyncio.to_thread(server.seen.entered.wait, PATIENCE_S)
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(server.seen.left.wait, PATIENCE_S)


async def test_a_closed_client_says_so(server: FakeServer) -> None:
    client = AsyncOparaClient(server.target)
    await client.close()
    for call in (client.infer("double", {"x": X}), client.models(), anext(client.infer_stream([]))):
        with pytest.raises(ValueError, match="the client is closed"):
            await call


async def test_unavailable_is_tried_again(server: FakeServer, aclient: AsyncOparaClient) -> None:
    server.models["double"].failures = 2
    np.testing.assert_array_equal((await aclient.infer("double", {"x": X}))["x"], X * 2)
    assert server.seen.calls["Infer"] == 3


async def test_wait_ready_gives_up_in_time() -> None:
    async with AsyncOparaClient("127.0.0.1:1") as client:
        with pytest.raises(DeadlineExceeded, match=r"not SERVING after 0\.3 s"):
            await client.wait_ready(0.3)
        with pytest.raises(Unavailable):
            await client.health()
