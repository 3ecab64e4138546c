"""A server's life: it listens, loads, serves, drains and stops, and says at each step what it is."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from torch import nn

from opara_protos.v1 import inference_pb2 as pb
from opara_server.app import Application
from opara_server.model_config import ModelConfig
from opara_server.rpc.front import SERVICE, StartError
from opara_server.serving.registry import LoadError, Progress
from opara_server.settings import ConfigError
from tests.rpc.served import (
    MODEL,
    MODEL_TOML,
    PATIENCE_S,
    HeldSleep,
    Served,
    config,
    eventually,
    request,
    serve,
    write_model,
)
from tests.serving.fakes import FakeCompiled

SERVING, NOT_SERVING = 1, 2
NAMES = ("", SERVICE, MODEL)
DRAINING_S = 3.0


class Slow:
    """Compiles once told to; until then reports progress, as the engine does."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __call__(self, name: str, _module: nn.Module, _config: ModelConfig, progress: Progress) -> FakeCompiled:
        while not self.go_on.wait(0.005):
            progress("measuring", 0.5)
        return FakeCompiled(name)


def watch(channel: grpc.aio.Channel, name: str) -> Any:
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE_S)


async def test_while_loading_the_server_answers_that_it_is_not_ready(models: Path) -> None:
    slow, steps = Slow(), asyncio.Queue[str]()
    loop = asyncio.get_running_loop()

    def progress(what: str, _share: float) -> None:
        loop.call_soon_threadsafe(steps.put_nowait, what)

    app = Application(config(models), compile_with=slow, progress=progress)
    starting = asyncio.create_task(app.start())
    try:
        while await steps.get() != f"{MODEL}: measuring":
            pass
        async with grpc.aio.insecure_channel(app.grpc_address) as channel:
            served = Served(app, FakeCompiled().device, channel)
            assert [await served.health(name) for name in NAMES] == [NOT_SERVING] * 3
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await served.stub.Infer(request(1.0))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            listed = await served.stub.ListModels(pb.ListModelsRequest())
            assert listed.models[0].state == pb.MODEL_STATE_LOADING
            watching = watch(channel, MODEL)
            assert (await watching.read()).status == NOT_SERVING
            slow.go_on.set()
            assert (await watching.read()).status == SERVING
            await starting
            assert [await served.health(name) for name in NAMES] == [SERVING] * 3
            assert await served.infer(1.0) == [2.0]
    finally:
        await app.stop()


async def test_the_port_can_stay_shut_until_the_models_are_ready(models: Path) -> None:
    slow = Slow()
    app = Application(config(models, listen_when_ready=True), compile_with=slow)
    starting = asyncio.create_task(app.start())
    try:
        await eventually(lambda: app.metrics_address)
        assert not app.grpc_address
        slow.go_on.set()
        await starting
        async with grpc.aio.insecure_channel(app.grpc_address) as channel:
            served = Served(app, FakeCompiled().device, channel)
            assert [await served.health(name) for name in NAMES] == [SERVING] * 3
            assert await served.infer(1.0) == [2.0]
    finally:
        await app.stop()


async def test_asked_to_stop_while_loading_it_never_serves(models: Path) -> None:
    slow = Slow()
    app = Application(config(models), compile_with=slow)
    starting = asyncio.create_task(app.start())
    await asyncio.sleep(0)
    app.ask_to_stop()
    await starting
    assert not app.serving
    await app.stop()
    assert not app.stuck


async def test_every_watcher_of_a_name_is_told_also_when_another_has_left(served: Served) -> None:
    staying, leaving, unknown = (watch(served.channel, name) for name in (MODEL, MODEL, "nobody"))
    assert [(await call.read()).status for call in (staying, leaving, unknown)] == [SERVING, SERVING, 3]
    leaving.cancel()
    assert await served.health() == SERVING
    stopping = asyncio.create_task(served.app.stop())
    assert (await staying.read()).status == NOT_SERVING
    assert await staying.read() is grpc.aio.EOF  # type: ignore[attr-defined]
    await stopping


async def test_health_of_a_name_that_is_not_there(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.health("nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_draining_it_serves_on_but_says_not_serving(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opara_server.app.asyncio", draining := HeldSleep())
    async with serve(models, drain_delay_s=DRAINING_S) as served:
        watching = watch(served.channel, "")
        assert (await watching.read()).status == SERVING
        stopping = asyncio.create_task(served.app.stop())
        assert (await watching.read()).status == NOT_SERVING
        assert await served.infer(1.0) == [2.0]
        assert [await served.health(name) for name in NAMES] == [NOT_SERVING] * 3
        assert draining.asked == [DRAINING_S]
        assert not stopping.done()
        draining.end.set()
        await stopping
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.infer(1.0)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_stopping_answers_what_is_in_flight(served: Served) -> None:
    held = await served.hold()
    queued = [asyncio.create_task(served.infer(float(value))) for value in range(20)]
    while served.waiting() < 20:
        await asyncio.sleep(0.001)
    stopping = asyncio.create_task(served.app.stop())
    await asyncio.sleep(0)
    served.device.gate.set()
    assert await asyncio.gather(*queued) == [[2.0 * value] for value in range(20)]
    assert await held == [2.0]
    await stopping


async def test_a_port_that_is_taken_is_one_clear_line(models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listen = rf"^cannot listen on 127\.0\.0\.1:{port} \(--host, --port\): Address already in use$"
        with pytest.raises(StartError, match=listen):
            async with Application(config(models).model_copy(update={"port": port})):
                pass
        metrics = rf"^cannot serve metrics on 127\.0\.0\.1:{port} \(--metrics-host, --metrics-port\): "
        with pytest.raises(StartError, match=metrics):
            async with Application(config(models).model_copy(update={"metrics_port": port})):
                pass


async def test_strict_start_up_ends_with_the_first_model_that_fails(models: Path) -> None:
    write_model(models, "broken", 'source = "python:torch.nn:Identity"')
    with pytest.raises(LoadError, match=r"model broken: .*'batch_sizes' is missing"):
        async with serve(models, strict=True):
            pass


async def test_no_models_is_an_error_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model in it"):
        Application(config(tmp_path))


async def test_a_lost_device_is_seen_from_outside_and_the_server_stays_up(served: Served) -> None:
    served.device.lost = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.infer(1.0)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    watching = watch(served.channel, "")
    while (await watching.read()).status != NOT_SERVING:
        pass
    assert [await served.health(name) for name in NAMES] == [NOT_SERVING] * 3
    assert served.sample("opara_model_ready", model=MODEL) == 0
    listed = await served.stub.ListModels(pb.ListModelsRequest())
    assert listed.models[0].state == pb.MODEL_STATE_FAILED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.infer(1.0)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_model_whose_largest_request_no_message_can_hold_is_served(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = MODEL_TOML.replace("max_rows = 16", "max_rows = 400_000_000").replace("max_queue_rows = 96", "")
    write_model(models, "big", text.replace("max_queue_rows", "# "))
    async with serve(models) as served:
        assert await served.infer(1.0) == [2.0]
    (told,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert told.__dict__["model"] == "big"
    assert str(2**31 - 1) in told.getMessage()


async def test_a_server_in_which_nothing_runs_any_more_ends(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever started it sees that by its exit status, and starts another."""

    def broken() -> None:
        raise KeyError("an error of ours")

    app = Application(config(models), compile_with=lambda name, *_: FakeCompiled(name))
    async with app, asyncio.timeout(PATIENCE_S):
        monkeypatch.setattr(app._executor, "_next", broken)
        app._executor.wake()
        await app.wait()
    assert app.failed
    assert not app.stuck
