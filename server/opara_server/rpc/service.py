"""opara.v1.InferenceService on grpc.aio: every method is decode, await, encode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import grpc

from opara_protos.v1 import inference_pb2 as pb
from opara_server.observe.metrics import Metrics
from opara_server.rpc import wire
from opara_server.rpc.describe import model_message, status_message
from opara_server.rpc.errors import Context, Failure, answered, attempt
from opara_server.rpc.stream import Stream
from opara_server.serving.batcher import Batcher
from opara_server.serving.errors import InvalidInput, ServingError, Status
from opara_server.serving.registry import Registry
from opara_server.serving.rows import Rows

_DESCRIPTOR = pb.DESCRIPTOR.services_by_name["InferenceService"]
SERVICE: str = _DESCRIPTOR.full_name


class InferenceService:
    """The methods take raw bytes, because grpc answers what its deserializers cannot read with the exception's text.

    ``stream_in_flight``: how many requests of one stream are worked on at a time.
    """

    def __init__(self, registry: Registry, metrics: Metrics, stream_in_flight: int) -> None:
        self._registry = registry
        self._metrics = metrics
        self._stream_in_flight = stream_in_flight
        self._streams: set[Stream] = set()
        self._streams_closed = False

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        methods = {
            "Infer": grpc.unary_unary_rpc_method_handler(self.infer),
            "InferStream": grpc.stream_stream_rpc_method_handler(self.infer_stream),
            "ListModels": grpc.unary_unary_rpc_method_handler(self.list_models),
            "GetModel": grpc.unary_unary_rpc_method_handler(self.get_model),
        }
        assert methods.keys() == {method.name for method in _DESCRIPTOR.methods}
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def close_streams(self) -> None:
        """For good: streams read no further, answer what they have read and end with UNAVAILABLE."""
        self._streams_closed = True
        for stream in self._streams:
            stream.close()

    @answered
    async def infer(self, message: bytes, context: Context) -> bytes:
        with self._observed() as call:
            request = wire.parse(pb.InferRequest, message)
            call.model = request.model
            response = pb.InferResponse()
            await self._infer(request, _deadline(context), response)
            return response.SerializeToString()

    @answered
    async def infer_stream(self, _messages: object, context: Context) -> None:
        deadline = _deadline(context)
        stream = Stream(context, lambda message: self._infer_streamed(message, deadline), self._stream_in_flight)
        self._streams.add(stream)
        if self._streams_closed:
            stream.close()
        try:
            await stream.serve()
        finally:
            self._streams.discard(stream)

    @answered
    async def list_models(self, message: bytes, _context: Context) -> bytes:
        wire.parse(pb.ListModelsRequest, message)
        models = [status_message(name, state) for name, state in self._registry.models()]
        return pb.ListModelsResponse(models=models).SerializeToString()

    @answered
    async def get_model(self, message: bytes, _context: Context) -> bytes:
        request = wire.parse(pb.GetModelRequest, message)
        return model_message(self._registry.describe(request.model)).SerializeToString()

    async def _infer(self, request: pb.InferRequest, deadline: float | None, response: pb.InferResponse) -> None:
        """Fills ``response``."""
        model = self._registry.get(request.model)
        rows = wire.decode(request, model.inputs, model.max_rows)
        wanted = wire.wanted_outputs(request, model.outputs)
        answer = await submit(model.batcher, rows, deadline)
        wire.encode(request, model.outputs, wanted, answer, response)

    async def _infer_streamed(self, message: bytes, deadline: float | None) -> bytes:
        """The InferStreamResponse to ``message``; whatever goes wrong is in it."""
        response = pb.InferStreamResponse()

        async def work() -> None:
            with self._observed() as call:
                streamed = wire.parse(pb.InferStreamRequest, message)
                response.id, call.model = streamed.request.id, streamed.request.model
                limit = _sooner(deadline, streamed.timeout_us)
                await self._infer(streamed.request, limit, response.response)

        outcome = await attempt(work())
        if isinstance(outcome, Failure):
            response.error.code, response.error.message = outcome.number, outcome.text
        return response.SerializeToString()

    @contextmanager
    def _observed(self) -> Iterator[_Call]:
        """Counts one Infer, with its outcome and how long it took."""
        call, status, started = _Call(), Status.INTERNAL, time.perf_counter()
        try:
            yield call
            status = Status.OK
        except ServingError as error:
            status = error.status
            raise
        except asyncio.CancelledError:
            status = Status.CANCELLED
            raise
        finally:
            self._metrics.request(call.model, status, time.perf_counter() - started)


@dataclass(slots=True)
class _Call:
    """``model``: as the client names it; empty until that can be read."""

    model: str = ""


async def submit(batcher: Batcher, rows: Rows, deadline: float | None) -> Rows:
    """``batcher.submit`` for asyncio: the answer, one buffer per output. Raises ServingError. Cancelling it
    frees the slot."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Rows] = loop.create_future()

    def settle(answer: Rows | ServingError) -> None:
        if answered.done():  # cancelled meanwhile
            return
        if isinstance(answer, ServingError):
            answered.set_exception(answer)
        else:
            answered.set_result(answer)

    def done(answer: Rows | ServingError) -> None:  # on the executor's thread
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, answer)

    ticket = batcher.submit(rows, deadline, done)
    try:
        return await answered
    except asyncio.CancelledError:
        ticket.cancel()
        raise


def _deadline(context: Context) -> float | None:
    """When the call ends, on time.monotonic(); None where the client set no deadline."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def _sooner(deadline: float | None, timeout_us: int) -> float | None:
    """``deadline``, or ``timeout_us`` from now where that is sooner; 0 sets no limit."""
    if timeout_us < 0:
        raise InvalidInput(f"timeout_us must not be negative, got {timeout_us}")
    if timeout_us == 0:
        return deadline
    limit = time.monotonic() + timeout_us / 1e6
    return limit if deadline is None else min(deadline, limit)
