"""inference.GRPCInferenceService on an asyncio server, but for its hot methods (inference.py)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import grpc

from opara_server.observe.metrics import Metrics
from opara_server.observe.statistics import statistics
from opara_server.rpc.descriptors import OIP_SERVICE, message_class
from opara_server.rpc.errors import Context, answered
from opara_server.rpc.jobs import finished
from opara_server.rpc.oip_codec import check_version
from opara_server.rpc.oip_describe import config_message, index_message, metadata_message, statistics_message
from opara_server.rpc.wire import parse, shown
from opara_server.serving.errors import InvalidInput, Unsupported
from opara_server.serving.models import ModelState, ServedModel
from opara_server.version import VERSION

if TYPE_CHECKING:
    from opara_server.serving.registry import Registry  # which imports torch

NAME = "opara-serve"
_EXTENSIONS = ("model_configuration", "schedule_policy", "statistics")
_ADMIN_EXTENSIONS = ("model_repository",)


class ServerCalls:
    """The methods about the server itself. They take raw bytes, because grpc answers what its deserializers cannot read
    with the exception's text.

    ``ready``: whether the server serves. ``admin``: whether clients may load and unload models.
    """

    def __init__(self, ready: Callable[[], bool], *, admin: bool) -> None:
        self._ready = ready
        self._admin = admin

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        return _handler(ServerLive=self.server_live, ServerReady=self.server_ready, ServerMetadata=self.server_metadata)

    @answered
    async def server_live(self, message: bytes, _context: Context) -> bytes:
        _parsed("ServerLiveRequest", message)
        return _written("ServerLiveResponse", live=True)

    @answered
    async def server_ready(self, message: bytes, _context: Context) -> bytes:
        _parsed("ServerReadyRequest", message)
        return _written("ServerReadyResponse", ready=self._ready())

    @answered
    async def server_metadata(self, message: bytes, _context: Context) -> bytes:
        _parsed("ServerMetadataRequest", message)
        extensions = (*_EXTENSIONS, *(_ADMIN_EXTENSIONS if self._admin else ()))
        return _written("ServerMetadataResponse", name=NAME, version=VERSION, extensions=extensions)


class ModelCalls:
    """The methods about models, likewise."""

    def __init__(self, registry: Registry, metrics: Metrics, *, admin: bool) -> None:
        self._registry = registry
        self._metrics = metrics
        self._admin = admin

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        return _handler(
            ModelReady=self.model_ready,
            ModelMetadata=self.model_metadata,
            ModelConfig=self.model_config,
            ModelStatistics=self.model_statistics,
            RepositoryIndex=self.repository_index,
            RepositoryModelLoad=self.repository_model_load,
            RepositoryModelUnload=self.repository_model_unload,
        )

    @answered
    async def model_ready(self, message: bytes, _context: Context) -> bytes:
        request = _parsed("ModelReadyRequest", message)
        state = self._registry.describe(request.name).state
        check_version(request.name, request.version)
        return _written("ModelReadyResponse", ready=state is ModelState.READY)

    @answered
    async def model_metadata(self, message: bytes, _context: Context) -> bytes:
        return _serialized(metadata_message(self._asked_for("ModelMetadataRequest", message)))

    @answered
    async def model_config(self, message: bytes, _context: Context) -> bytes:
        return _serialized(config_message(self._asked_for("ModelConfigRequest", message)))

    @answered
    async def model_statistics(self, message: bytes, _context: Context) -> bytes:
        request = _parsed("ModelStatisticsRequest", message)
        names = [request.name] if request.name else [name for name, _ in self._registry.models()]
        for name in names:
            self._registry.describe(name)
            check_version(name, request.version)
        stats = [statistics_message(name, statistics(self._metrics, name)) for name in names]
        return _written("ModelStatisticsResponse", model_stats=stats)

    @answered
    async def repository_index(self, message: bytes, _context: Context) -> bytes:
        request = _parsed("RepositoryIndexRequest", message)
        _check_repository(request.repository_name)
        models = [
            index_message(self._registry.describe(name))
            for name, state in self._registry.models()
            if state is ModelState.READY or not request.ready
        ]
        return _written("RepositoryIndexResponse", models=models)

    @answered
    async def repository_model_load(self, message: bytes, _context: Context) -> bytes:
        name = self._allowed("RepositoryModelLoadRequest", message, known=set())
        await finished(self._registry.load(name))
        return _written("RepositoryModelLoadResponse")

    @answered
    async def repository_model_unload(self, message: bytes, _context: Context) -> bytes:
        # No model depends on another, and clients send this one always.
        name = self._allowed("RepositoryModelUnloadRequest", message, known={"unload_dependents"})
        await finished(self._registry.unload(name))
        return _written("RepositoryModelUnloadResponse")

    def _asked_for(self, kind: str, message: bytes) -> ServedModel:
        """Raises ServingError unless it is READY."""
        request = _parsed(kind, message)
        model = self._registry.get(request.name)
        check_version(model.name, request.version)
        return model

    def _allowed(self, kind: str, message: bytes, known: set[str]) -> str:
        """The model that a change of the repository is about. Raises ServingError."""
        if not self._admin:
            raise Unsupported("models are loaded and unloaded only where the server was started with --admin")
        request = _parsed(kind, message)
        _check_repository(request.repository_name)
        unknown = [name for name in request.parameters if name not in known]
        if unknown:
            raise InvalidInput(f"parameter {shown(unknown[0])} is not supported")
        name: str = request.model_name
        return name


def _handler(**methods: Callable[[bytes, Context], Coroutine[Any, Any, bytes]]) -> grpc.GenericRpcHandler[bytes, bytes]:
    handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
    return grpc.method_handlers_generic_handler(OIP_SERVICE, handlers)


def _check_repository(name: str) -> None:
    if name:
        raise InvalidInput(f"no repository {shown(name)}: there is one, which has no name")


def _parsed(kind: str, message: bytes) -> Any:
    return parse(message_class(kind), message)


def _written(kind: str, **fields: Any) -> bytes:
    return _serialized(message_class(kind)(**fields))


def _serialized(message: Any) -> bytes:
    serialized: bytes = message.SerializeToString()
    return serialized
