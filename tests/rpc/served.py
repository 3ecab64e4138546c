"""A whole server in this process, but for the engine: its one model doubles, on a device with a gate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from opara_protos.v1 import inference_pb2 as pb
from opara_protos.v1.inference_pb2_grpc import InferenceServiceStub
from opara_server.app import Application
from opara_server.config import ServerConfig
from opara_server.observe.tracing import Tracer
from opara_server.rpc.transports import CQ
from opara_server.serving.registry import Compile
from tests.serving.fakes import FakeCompiled, FakeDevice
from tests.workers.pair import Pair

if TYPE_CHECKING:
    from opara_protos.v1.inference_pb2_grpc import InferenceServiceAsyncStub

PATIENCE_S = 60.0
WORKER = "worker"  # beside the transports: calls are taken as by a worker, if in the same process
MODEL = "double"
MAX_ROWS, MAX_QUEUE_ROWS = 16, 96
MODEL_TOML = f"""
source = "python:torch.nn:Identity"
batch_sizes = [1, 4, 8]

[[inputs]]
name = "x"
dtype = "float32"
shape = [2]

[batching]
max_rows = {MAX_ROWS}
max_queue_rows = {MAX_QUEUE_ROWS}
"""


@dataclass
class Served:
    """``device.gate`` closed holds every replay; ``device.entered`` counts those that began since the start."""

    app: Application
    device: FakeDevice
    channel: grpc.aio.Channel

    @property
    def stub(self) -> InferenceServiceAsyncStub:
        return cast("InferenceServiceAsyncStub", InferenceServiceStub(self.channel))

    async def infer(self, *values: float, timeout: float | None = PATIENCE_S) -> list[float]:
        """The doubled ``values``, one per row."""
        response = await self.stub.Infer(request(*values), timeout=timeout)
        return doubled(response)

    async def raw(self, method: str, message: bytes) -> bytes:
        """Sends bytes as they are."""
        call: Any = self.channel.unary_unary(f"/opara.v1.InferenceService/{method}", None, None)
        answer: bytes = await call(message, timeout=PATIENCE_S)
        return answer

    def close_gate(self) -> None:
        """Replays that begin now wait, and are the first that ``entered`` counts."""
        self.device.gate.clear()
        while self.device.entered.acquire(blocking=False):
            pass

    async def hold(self) -> asyncio.Task[list[float]]:
        """Close the gate and have one replay wait at it: whatever comes now queues up. Returns its request."""
        self.close_gate()
        held = asyncio.create_task(self.infer(1.0))
        await eventually(lambda: self.device.entered.acquire(blocking=False))
        return held

    async def health(self, name: str = "") -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE_S)
        return int(answer.status)

    def sample(self, name: str, **labels: str) -> float:
        return self.app.metrics.registry.get_sample_value(name, labels) or 0.0

    def waiting(self) -> float:
        """Rows in the queue."""
        return self.sample("opara_queue_depth_rows", model=MODEL)

    def over(self) -> bool:
        """Whether a request came here whose client is gone or whose deadline has passed."""
        return any(self.sample("opara_requests_total", model=MODEL, code=c) for c in ("CANCELLED", "DEADLINE_EXCEEDED"))

    async def late(self, *values: float, timeout: float = 0.5) -> grpc.StatusCode:
        """How a request ends whose deadline passes while it waits in the queue, which has to be empty and held. Where
        the deadline passes on the way there, another has twice the time."""
        call = asyncio.create_task(refused(self.infer(*values, timeout=timeout)))
        await eventually(lambda: self.waiting() or call.done())
        has_waited = not call.done()
        code, _ = await call
        if not has_waited:
            return await self.late(*values, timeout=2 * timeout)
        await eventually(lambda: self.over() and not self.waiting())
        return code


def request(*values: float, **fields: object) -> pb.InferRequest:
    """One row of two equal numbers for each of ``values``."""
    data = np.repeat(np.asarray(values, dtype=np.float32), 2).tobytes()
    tensor = pb.Tensor(name="x", data_type=pb.DATA_TYPE_FLOAT32, shape=(len(values), 2), data=data)
    return pb.InferRequest(**({"model": MODEL, "inputs": [tensor]} | fields))  # type: ignore[arg-type]


def doubled(response: pb.InferResponse) -> list[float]:
    (output,) = response.outputs
    rows = np.frombuffer(output.data, dtype=np.float32).reshape(tuple(output.shape))
    assert np.array_equal(rows[:, 0], rows[:, 1], equal_nan=True)
    return [float(value) for value in rows[:, 0]]


def write_model(folder: Path, name: str = MODEL, toml: str = MODEL_TOML) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "model.toml").write_text(toml)
    return folder


def config(models: Path, **options: object) -> ServerConfig:
    return ServerConfig.of(models=models, port=0, metrics_port=0, cache_dir=models / "plans", **options)


@asynccontextmanager
async def serve(
    models: Path,
    compile_with: Compile | None = None,
    *,
    transport: str = CQ,
    credentials: grpc.ChannelCredentials | None = None,
    tracer: Tracer | None = None,
    **options: object,
) -> AsyncIterator[Served]:
    """``transport``: or WORKER. ``credentials``: of the channel, where the server has TLS. ``tracer``: of all sides."""
    device = FakeDevice()
    compile_with = compile_with or (lambda name, _module, _config, _progress: FakeCompiled(name, device=device))
    settings = config(models, transport=CQ if transport == WORKER else transport, **options)
    open_front = partial(Pair, tracer=tracer) if transport == WORKER else None
    async with (
        Application(settings, compile_with=compile_with, open_front=open_front, tracer=tracer) as app,
        channel_to(app, credentials) as channel,
    ):
        try:
            yield Served(app, device, channel)
        finally:
            device.gate.set()


def channel_to(app: Application, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """With a connection of its own."""
    own = (("grpc.use_local_subchannel_pool", 1),)
    if credentials is None:
        return grpc.aio.insecure_channel(app.grpc_address, own)
    return grpc.aio.secure_channel(app.grpc_address, credentials, own)


class HeldSleep:
    """asyncio to a module, but that ``sleep`` lasts until ``end`` is set; ``asked``: for how long, each time."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.end = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self.end.wait()

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


async def refused(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    """How ``call`` fails; the test does if it does not."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def eventually(condition: Callable[[], object | Awaitable[object]]) -> None:
    """Until it holds; fails when it does not within PATIENCE_S."""
    end = time.monotonic() + PATIENCE_S
    while not (await held if isawaitable(held := condition()) else held):
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.002)
