"""Server reflection on an asyncio server: the library's servicer, behind a method that takes raw bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from opara_server.rpc.descriptors import reflection_pool
from opara_server.rpc.errors import Context, answered
from opara_server.rpc.wire import parse


class Reflection:
    """``services``: the full names of those that clients are told of, beside its own. Raw bytes, because grpc answers
    what its deserializers cannot read with the exception's text."""

    def __init__(self, services: Iterable[str]) -> None:
        names = (*services, reflection.SERVICE_NAME)
        self._servicer = reflection.aio.ReflectionServicer(names, reflection_pool())  # type: ignore[attr-defined]

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        methods = {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(self.info)}
        return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, methods)

    @answered
    async def info(self, messages: AsyncIterator[bytes], context: Context) -> None:
        async for answer in self._servicer.ServerReflectionInfo(_parsed(messages), context):
            try:
                await context.write(answer.SerializeToString())
            except grpc.aio.BaseError:  # what gRPC says of a call that has ended
                return


async def _parsed(messages: AsyncIterator[bytes]) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    """Raises InvalidInput."""
    async for message in messages:
        yield parse(reflection_pb2.ServerReflectionRequest, message)
