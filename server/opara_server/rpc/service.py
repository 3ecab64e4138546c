"""opara.v1.InferenceService on grpc.aio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import grpc

from opara_protos.v1 import inference_pb2 as pb
from opara_server.observe.metrics import Metrics
from opara_server.rpc import wire
from opara_server.rpc.describe import model_message, status_message
from opara_server.rpc.errors import Context, answered
from opara_server.rpc.inference import Inference, Reply
from opara_server.rpc.replies import Outcome, Replies
from opara_server.rpc.stream import Stream
from opara_server.serving.batcher import Ticket
from opara_server.serving.registry import Registry

_DESCRIPTOR = pb.DESCRIPTOR.services_by_name["InferenceService"]
SERVICE: str = _DESCRIPTOR.full_name

Hot = Callable[[bytes, float | None, Reply], Ticket | None]


class InferenceService:
    """The methods take raw bytes, because grpc answers what its deserializers cannot read with the exception's text.

    ``stream_in_flight``: how many requests of one stream are worked on at a time. On the event loop that serves.
    """

    def __init__(self, registry: Registry, metrics: Metrics, stream_in_flight: int) -> None:
        self._registry = registry
        self._inference = Inference(registry, metrics)
        self._replies = Replies()
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
    async def infer(self, message: bytes, context: Context) -> Outcome:
        return await self._ask(self._inference.infer, message, _deadline(context))

    @answered
    async def infer_stream(self, _messages: object, context: Context) -> None:
        deadline = _deadline(context)

        async def answer(message: bytes) -> bytes:
            outcome = await self._ask(self._inference.infer_streamed, message, deadline)
            assert isinstance(outcome, bytes)
            return outcome

        stream = Stream(context, answer, self._stream_in_flight)
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

    async def _ask(self, method: Hot, message: bytes, deadline: float | None) -> Outcome:
        """Cancelling it frees the request's slot."""
        outcome, reply = self._replies.expected()
        ticket = method(message, deadline, reply)
        try:
            return await outcome
        except asyncio.CancelledError:
            if ticket is not None:
                ticket.cancel()
            raise


def _deadline(context: Context) -> float | None:
    """When the call ends, on time.monotonic(); None where the client set no deadline."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining
