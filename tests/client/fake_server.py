"""A real gRPC server on a loopback port, with models of a line each, built on the generated servicer."""

# ruff: noqa: N802, ARG002 (the methods are the protocol's)

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from opara_protos.v1 import inference_pb2 as pb
from opara_protos.v1 import inference_pb2_grpc as rpc

PATIENCE_S = 60.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

PLAN = pb.Bucket(
    batch_size=8,
    policy="opara",
    lowering="aten",
    operators=42,
    streams=4,
    synchronisations=7,
    measured_us=100.0,
    sequential_us=150.0,
    peak_bytes=1 << 20,
    steady_bytes=1 << 19,
    candidates=[
        pb.Candidate(
            lowering="aten", policy="sequential", streams=1, predicted_us=160.0, measured_us=150.0, peak_bytes=1 << 19
        ),
        pb.Candidate(
            lowering="aten",
            policy="opara",
            streams=4,
            synchronisations=7,
            predicted_us=90.0,
            measured_us=100.0,
            again_us=101.5,
            compact=True,
        ),
        pb.Candidate(
            lowering="aten", policy="nimble", streams=9, measured_us=90.0, rejected="wrong in 1 of 100 replays"
        ),
        pb.Candidate(
            lowering="aten",
            policy="wavefront",
            streams=1,
            predicted_us=80.0,
            rejected="not measured: beyond the tuning budget",
        ),
    ],
    reused=True,
    compact=True,
)


@dataclass
class Model:
    """Echoes its inputs, doubled if they are float32. ``failures``: how many calls fail with ``code`` before
    that. ``limits``: the range that it declares for its inputs, none for None. ``reason``: why it is FAILED."""

    inputs: dict[str, pb.DataType.ValueType]
    state: pb.ModelState.ValueType = pb.MODEL_STATE_READY
    failures: int = 0
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    limits: tuple[float, float] | None = None
    reason: str = ""


@dataclass
class Seen:
    """What the server has seen: calls by method, what came with the last one, requests of streams, and whether somebody
    waits or went away."""

    calls: Counter[str] = field(default_factory=Counter)
    metadata: list[tuple[str, str | bytes]] = field(default_factory=list)
    streamed: list[pb.InferStreamRequest] = field(default_factory=list)
    entered: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)


class FakeServer(rpc.InferenceServiceServicer):
    """Models named ``slow`` answer only when the caller is gone; ``late`` ones of a stream after the next request;
    ``abort`` breaks its stream, ``hangup`` ends it without an answer."""

    def __init__(
        self, models: dict[str, Model], credentials: grpc.ServerCredentials | None = None, port: int = 0
    ) -> None:
        self.models = models
        self.seen = Seen()
        self.health = HealthServicer()
        self._pool = ThreadPoolExecutor(16)
        limits = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
        self._server = grpc.server(self._pool, options=limits)
        rpc.add_InferenceServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.health.set("", SERVING)
        address = f"127.0.0.1:{port}"
        if credentials:
            self.port = self._server.add_secure_port(address, credentials)
        else:
            self.port = self._server.add_insecure_port(address)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.stop(None).wait()
        self._pool.shutdown()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def Infer(self, request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferResponse:
        self.seen.calls["Infer"] += 1
        self.seen.metadata = list(context.invocation_metadata())
        model = self._model(request.model, context)
        if model.failures:
            model.failures -= 1
            context.abort(model.code, f"model {request.model!r} is loading")
        if request.model == "slow":
            self._wait_until_gone(context)
        for tensor in request.inputs:
            if model.inputs.get(tensor.name) != tensor.data_type:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"input {tensor.name!r}: refused by the server")
        return _answer(request)

    def InferStream(
        self, request_iterator: Iterator[pb.InferStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.InferStreamResponse]:
        self.seen.calls["InferStream"] += 1
        self.seen.metadata = list(context.invocation_metadata())
        context.add_callback(self.seen.left.set)
        late: list[pb.InferStreamResponse] = []
        for item in request_iterator:
            self.seen.streamed.append(item)
            name = item.request.model
            if name == "abort":
                context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
            if name == "hangup":
                return
            if name == "late":
                late.append(self._stream_answer(item.request))
                continue
            yield self._stream_answer(item.request)
            yield from late
            late.clear()
        yield from late

    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        self.seen.calls["ListModels"] += 1
        return pb.ListModelsResponse(models=[self._status(name) for name in self.models])

    def GetModel(self, request: pb.GetModelRequest, context: grpc.ServicerContext) -> pb.GetModelResponse:
        self.seen.calls["GetModel"] += 1
        model = self._model(request.model, context)
        low, high = model.limits or (None, None)
        specs = [
            pb.TensorSpec(name=name, data_type=kind, shape=[-1, 2], low=low, high=high)
            for name, kind in model.inputs.items()
        ]
        if model.state != pb.MODEL_STATE_READY:
            return pb.GetModelResponse(status=self._status(request.model), inputs=specs)
        return pb.GetModelResponse(
            status=self._status(request.model),
            inputs=specs,
            outputs=specs,
            device="cpu",
            device_name="a processor",
            max_rows=64,
            buckets=[PLAN],
            fallback_reason="sin is missing" if request.model == "fallback" else "",
        )

    def ProfileModel(self, request: pb.ProfileModelRequest, context: grpc.ServicerContext) -> pb.ProfileModelResponse:
        self._model(request.model, context)
        sizes = [request.batch_size] if request.batch_size else [1, 8]
        return pb.ProfileModelResponse(buckets=[_profile(size) for size in sizes])

    def _status(self, name: str) -> pb.ModelStatus:
        return pb.ModelStatus(name=name, state=self.models[name].state, reason=self.models[name].reason)

    def _model(self, name: str, context: grpc.ServicerContext) -> Model:
        if name not in self.models:
            _abort(context, grpc.StatusCode.NOT_FOUND, f"no model\n{name!r}")
        return self.models[name]

    def _wait_until_gone(self, context: grpc.ServicerContext) -> None:
        context.add_callback(self.seen.left.set)
        self.seen.entered.set()
        self.seen.left.wait(PATIENCE_S)

    def _stream_answer(self, request: pb.InferRequest) -> pb.InferStreamResponse:
        error = None
        if request.model not in self.models:
            error = pb.Error(code=5, message="no such model")
        elif any(self.models[request.model].inputs.get(t.name) != t.data_type for t in request.inputs):
            error = pb.Error(code=3, message="input 'x': refused by the server")
        if error:
            return pb.InferStreamResponse(id=request.id, error=error)
        return pb.InferStreamResponse(id=request.id, response=_answer(request))


def _profile(batch_size: int) -> pb.BucketProfile:
    return pb.BucketProfile(
        batch_size=batch_size,
        replays=10,
        span_us=100.0,
        concurrency=1.5,
        stream_busy={1: 0.5, 0: 1.0},
        busy_us={0: 0.0, 1: 50.0, 2: 50.0},
        timeline=[pb.Interval(name="conv", stream=1, start_us=50.0, end_us=100.0)],
        omitted=3,
        seconds=0.0123,
    )


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, details: str) -> NoReturn:
    context.abort(code, details)
    raise AssertionError("abort returned")


def _answer(request: pb.InferRequest) -> pb.InferResponse:
    outputs = [_doubled(tensor) for tensor in request.inputs if not request.outputs or tensor.name in request.outputs]
    return pb.InferResponse(model=request.model, id=request.id, outputs=outputs)


def _doubled(tensor: pb.Tensor) -> pb.Tensor:
    if tensor.data_type != pb.DATA_TYPE_FLOAT32:
        return tensor
    data: np.ndarray[Any, Any] = np.frombuffer(tensor.data, "<f4") * np.float32(2)
    return pb.Tensor(name=tensor.name, data_type=tensor.data_type, shape=tensor.shape, data=data.tobytes())


def default_models() -> dict[str, Model]:
    x = {"x": pb.DATA_TYPE_FLOAT32}
    doubling = {name: Model(dict(x)) for name in ("double", "slow", "late", "abort", "hangup", "fallback")}
    echoes = {
        f"echo-{name.removeprefix('DATA_TYPE_').lower()}": Model({"x": number})
        for name, number in pb.DataType.items()
        if number
    }
    return {**doubling, **echoes, "loading": Model(dict(x), pb.MODEL_STATE_LOADING, failures=1000)}
