"""opara.v1.InferenceService on an asyncio server, but for its hot methods (inference.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from opara_protos.v1 import inference_pb2 as pb
from opara_server.rpc import wire
from opara_server.rpc.describe import model_message, profile_message, status_message
from opara_server.rpc.errors import Context, answered
from opara_server.rpc.front import SERVICE
from opara_server.rpc.jobs import finished
from opara_server.serving.errors import Unsupported

if TYPE_CHECKING:
    from opara_server.serving.registry import Registry  # which imports torch


class InferenceService:
    """The methods take raw bytes, because grpc answers what its deserializers cannot read with the exception's text.

    ``admin``: whether clients may have models traced.
    """

    def __init__(self, registry: Registry, *, admin: bool) -> None:
        self._registry = registry
        self._admin = admin

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        methods = {
            "ListModels": grpc.unary_unary_rpc_method_handler(self.list_models),
            "GetModel": grpc.unary_unary_rpc_method_handler(self.get_model),
            "ProfileModel": grpc.unary_unary_rpc_method_handler(self.profile_model),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    @answered
    async def list_models(self, message: bytes, _context: Context) -> bytes:
        wire.parse(pb.ListModelsRequest, message)
        models = [status_message(self._registry.describe(name)) for name, _ in self._registry.models()]
        return pb.ListModelsResponse(models=models).SerializeToString()

    @answered
    async def get_model(self, message: bytes, _context: Context) -> bytes:
        request = wire.parse(pb.GetModelRequest, message)
        return model_message(self._registry.describe(request.model)).SerializeToString()

    @answered
    async def profile_model(self, message: bytes, _context: Context) -> bytes:
        if not self._admin:
            raise Unsupported("models are profiled only where the server was started with --admin")
        request = wire.parse(pb.ProfileModelRequest, message)
        plan = self._registry.get(request.model).plan
        sizes = [request.batch_size] if request.batch_size else [bucket.batch_size for bucket in plan.buckets]
        samples = [await finished(self._registry.profile(request.model, size)) for size in sizes]
        return profile_message(samples).SerializeToString()
