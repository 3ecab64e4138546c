"""The asyncio client: the methods of ``OparaClient``, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import grpc
import grpc.aio

from opara_client import health, loading
from opara_client.channel import (
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    READY_POLL_S,
    channel_options,
    open_async_channel,
)
from opara_client.deadline import Deadline
from opara_client.ending import Ending
from opara_client.errors import DeadlineExceeded, InvalidArgument, NotFound, OparaError, Unavailable, translated
from opara_client.feed import AsyncFeed
from opara_client.health import HealthStatus
from opara_client.messages import (
    InferRequest,
    InferResult,
    decode_answer,
    decode_result,
    encode_request,
    encode_stream_request,
)
from opara_client.models import ModelInfo, ModelState, ModelStatus, decode_model, decode_status
from opara_client.profiles import BucketProfile, decode_profile
from opara_client.propagation import in_context
from opara_client.security import Bearer, Tls
from opara_client.tensors import Array, check_dtypes
from opara_protos.v1 import inference_pb2 as pb
from opara_protos.v1.inference_pb2_grpc import InferenceServiceStub

if TYPE_CHECKING:
    from opara_protos.v1.inference_pb2_grpc import InferenceServiceAsyncStub


class AsyncOparaClient:
    """``OparaClient`` for asyncio: the same arguments and errors. Make and use it inside one running event loop."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        tls: Tls | None = None,
        token: str = "",
        token_file: Path | str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        wait_for_ready: bool = False,
    ) -> None:
        self._channel = open_async_channel(target, channel_options(max_message_bytes), tls, credentials)
        self._metadata = in_context(Bearer(token, token_file).metadata)
        self._stub = cast("InferenceServiceAsyncStub", InferenceServiceStub(self._channel))
        self._check = self._channel.unary_unary(health.CHECK, health.encode_check, health.decode_check)
        self._load = self._channel.unary_unary(loading.LOAD, loading.encode_load, None)
        self._unload = self._channel.unary_unary(loading.UNLOAD, loading.encode_load, None)
        self._target = target
        self._timeout = timeout
        self._wait = wait_for_ready
        self._declared: dict[str, dict[str, str]] = {}  # dtype by input, by model

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection; tasks that wait for a call in flight are cancelled."""
        await self._channel.close(None)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        id: str = "",  # noqa: A002 (the protocol's word)
    ) -> InferResult:
        """Runs one request. The first dimension of each input counts rows. ``outputs``: the wanted, empty for all."""
        request, deadline = InferRequest(model, inputs, outputs, id=id), self._deadline(timeout)
        try:
            declared = await self._dtypes(model, deadline)
            check_dtypes(inputs, declared)
            message = encode_request(request, declared)
            with translated():
                response = await self._stub.Infer(
                    message, timeout=deadline.left(), wait_for_ready=self._wait, metadata=self._metadata()
                )
        except InvalidArgument:
            self._declared.pop(model, None)  # the model may have been replaced by one with other inputs
            raise
        return decode_result(response)

    async def infer_stream(
        self,
        requests: Iterable[InferRequest] | AsyncIterable[InferRequest],
        *,
        timeout: float | None = None,
        max_in_flight: int = 32,
    ) -> AsyncGenerator[tuple[str, InferResult | OparaError], None]:
        """As ``OparaClient.infer_stream``; ``requests`` is read by a task of its own."""
        feed = AsyncFeed(requests, self._encode_for_stream, max_in_flight)
        with translated():
            call = self._stub.InferStream(None, timeout=timeout, wait_for_ready=self._wait, metadata=self._metadata())
        ending = Ending(call)
        sender = asyncio.create_task(feed.send(call))
        try:
            try:
                async for answer in call:
                    feed.answered()
                    yield answer.id, decode_answer(answer)
            except grpc.RpcError as error:
                await ending.check(error)
            feed.check_complete()
        finally:
            call.cancel()
            sender.cancel()
            # The sender's own error says nothing that the reader's does not.
            await asyncio.gather(sender, return_exceptions=True)

    async def models(self) -> tuple[ModelStatus, ...]:
        """Every model of the server and its state."""
        with translated():
            response = await self._stub.ListModels(
                pb.ListModelsRequest(), timeout=self._timeout, wait_for_ready=self._wait, metadata=self._metadata()
            )
        return tuple(decode_status(status) for status in response.models)

    async def model(self, name: str) -> ModelInfo:
        """What the model takes and gives, and the plan that runs it."""
        return await self._model(name, self._deadline(None))

    async def profile(self, model: str, batch_size: int = 0) -> tuple[BucketProfile, ...]:
        """Has a few replays traced, of one of the model's batch sizes or of all, while requests wait: how busy its
        streams were. Unimplemented where the server was started without ``--admin``."""
        with translated():
            response = await self._stub.ProfileModel(
                pb.ProfileModelRequest(model=model, batch_size=batch_size),
                timeout=self._timeout,
                wait_for_ready=self._wait,
                metadata=self._metadata(),
            )
        return decode_profile(response)

    async def load(self, model: str, *, timeout: float | None = None) -> None:
        """Has the model loaded, or loaded again with its settings and weights as they are now; returns once it serves.
        NotFound without a folder of that name; Unavailable where it cannot be loaded: the server's log says why;
        Unimplemented where the server was started without ``--admin``. ``timeout``: default the client's."""
        await self._administer(self._load, model, timeout)

    async def unload(self, model: str, *, timeout: float | None = None) -> None:
        """Has the model unloaded, once what waits for it is answered. Raises as ``load`` does."""
        await self._administer(self._unload, model, timeout)

    async def health(self, service: str = "") -> HealthStatus:
        """The health of the server, or of one model or service of it; NotFound for one that it does not know."""
        with translated():
            status: HealthStatus = await self._check(
                service, timeout=self._timeout, wait_for_ready=self._wait, metadata=self._metadata()
            )
        return status

    async def wait_ready(self, timeout: float = DEFAULT_TIMEOUT_S, service: str = "") -> None:
        """Returns once ``health(service)`` is SERVING; DeadlineExceeded after ``timeout`` seconds without that."""
        deadline = Deadline.after(timeout)
        while not await self._serving(service, deadline):
            if deadline.left() == 0:
                raise DeadlineExceeded(f"{self._target} is not SERVING after {timeout:g} s")
            await asyncio.sleep(READY_POLL_S)

    async def _serving(self, service: str, deadline: Deadline) -> bool:
        try:
            with translated():
                status: HealthStatus = await self._check(
                    service, timeout=deadline.left(), wait_for_ready=True, metadata=self._metadata()
                )
        except (Unavailable, DeadlineExceeded):
            return False
        return status is HealthStatus.SERVING

    async def _administer(self, call: Any, model: str, timeout: float | None) -> None:
        self._declared.pop(model, None)  # its inputs may be others then
        with translated():
            await call(
                model,
                timeout=self._timeout if timeout is None else timeout,
                wait_for_ready=self._wait,
                metadata=self._metadata(),
            )

    async def _model(self, name: str, deadline: Deadline) -> ModelInfo:
        with translated():
            response = await self._stub.GetModel(
                pb.GetModelRequest(model=name),
                timeout=deadline.left(),
                wait_for_ready=self._wait,
                metadata=self._metadata(),
            )
        return decode_model(response)

    async def _dtypes(self, model: str, deadline: Deadline) -> dict[str, str]:
        declared = self._declared.get(model)
        if declared is None:
            info = await self._model(model, deadline)
            declared = {spec.name: spec.dtype for spec in info.inputs}
            if info.state is ModelState.READY:
                self._declared[model] = declared
        return declared

    async def _encode_for_stream(self, request: InferRequest) -> pb.InferStreamRequest:
        try:
            declared = await self._dtypes(request.model, self._deadline(request.timeout))
        except NotFound:
            declared = {}  # the server says so again, as the answer to this request
        return encode_stream_request(request, declared, self._timeout)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline.after(self._timeout if timeout is None else timeout)
