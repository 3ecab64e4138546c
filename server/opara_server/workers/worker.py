"""A worker: a process that takes calls, and has the engine answer them. No torch in here."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import grpc

from opara_server.config import ServerConfig
from opara_server.observe.metrics import UNKNOWN_MODEL
from opara_server.observe.request_log import shown_id
from opara_server.observe.tracing import Tracer
from opara_server.rpc.descriptors import OIP_SERVICE
from opara_server.rpc.edge import make_edge
from opara_server.rpc.errors import Context, Failure
from opara_server.rpc.front import SERVER_NAMES, SERVICE, LocalFront
from opara_server.rpc.inference import Inference
from opara_server.rpc.oip import ServerCalls
from opara_server.rpc.turn import Turn
from opara_server.workers.caller import ENGINE_GONE, Caller
from opara_server.workers.counting import WorkerCounts
from opara_server.workers.link import End
from opara_server.workers.messages import Messages
from opara_server.workers.mirror import Mirror
from opara_server.workers.region import attach

log = logging.getLogger(__name__)

_GONE = Failure(grpc.StatusCode.UNAVAILABLE, ENGINE_GONE)


class Worker:
    """``listen``, and ``attach`` to an engine, to another one once that is gone; then ``stop``. It answers that it is
    not ready while there is none. On the event loop that is running."""

    def __init__(self, config: ServerConfig, message_limit: int, tracer: Tracer | None = None) -> None:
        """Raises ConfigError where a file that ``config`` names cannot be used."""
        self._mirror = Mirror()
        self._counts = WorkerCounts()
        inference = Inference(self._mirror, self._counts, tracer, config.log_requests)
        edge = make_edge(config, message_limit, lambda code: self._counts.refuse(UNKNOWN_MODEL, code, 0.0))
        self._turn = Turn()
        self._front = LocalFront(config, edge, inference, self._turn)
        server = ServerCalls(self._front.health.serving, admin=config.admin)
        self._front.add((server.handler(), PassedOn(self._ask)))
        for name in SERVER_NAMES:
            self._front.set(name, serving=False)
        self._grace_s = config.grace_s
        self._engine: Messages | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._informed = asyncio.Event()
        self._asked: dict[int, asyncio.Future[bytes | Failure]] = {}
        self._number = 0

    async def listen(self) -> str:
        """Take calls from now on; the address. Raises StartError."""
        return await self._front.listen()

    async def attach(self, end: End) -> None:
        """From now on ``end``'s engine answers, which it may begin to do later."""
        if self._hearing is not None:
            await self._hearing  # until the one before is known to be gone
        region = attach(end.memory)
        os.close(end.memory)
        caller = Caller(region.places, end.submissions, end.completions, self._turn)
        self._engine = await Messages.open(end.messages)
        self._hearing = asyncio.create_task(self._hear(self._engine, caller, region.counts))

    async def informed(self) -> None:
        """Until the engine that it is attached to has said what there is, or is gone."""
        await self._informed.wait()

    def goes_on(self) -> bool:
        """Whether calls are handled, as far as the event loop can tell, on which this is asked now and then."""
        return self._turn.goes_on()

    def drain(self) -> None:
        """Everything is NOT_SERVING from now on."""
        self._front.drain()

    async def stop(self) -> None:
        """Take no more calls, finish those in flight."""
        await self._front.stop(self._grace_s)
        if self._engine is not None:
            self._engine.close()
        if self._hearing is not None:
            await self._hearing

    async def _hear(self, engine: Messages, caller: Caller, counts: memoryview) -> None:
        known: set[str] = set()
        async for said, payload in engine.received():
            if "reply" in said:
                self._replied(said, payload)
                continue
            models: Mapping[str, Any] = said["models"]
            self._counts.attach(counts, {name: model["row"] for name, model in models.items()})
            self._mirror.update(models, caller)
            known |= said["health"].keys()
            for name, serving in said["health"].items():
                self._front.set(name, serving=serving)
            self._informed.set()
        engine.close()
        self._lost(known)

    def _lost(self, names: set[str]) -> None:
        self._engine = None
        self._informed.set()
        self._mirror.lose()
        self._counts.detach()
        for name in names:
            self._front.set(name, serving=False)
        for asked in self._asked.values():
            if not asked.done():
                asked.set_result(_GONE)

    def _replied(self, said: Mapping[str, Any], payload: bytes) -> None:
        asked = self._asked.get(said["reply"])
        if asked is not None and not asked.done():  # its client is there
            asked.set_result(Failure(grpc.StatusCode[said["code"]], said["text"]) if "code" in said else payload)

    async def _ask(self, method: str, message: bytes, request_id: str) -> bytes | Failure:
        """The engine's answer. ``request_id``: the call's, by which the engine's log names it."""
        if self._engine is None:
            return _GONE
        number = self._number = self._number + 1
        asked: asyncio.Future[bytes | Failure] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        self._engine.send({"call": number, "method": method, "request_id": request_id}, message)
        try:
            return await asked
        finally:
            del self._asked[number]


class PassedOn(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs only
    """The methods of both services that are not served here, whatever they are."""

    def __init__(self, ask: Callable[[str, bytes, str], Awaitable[bytes | Failure]]) -> None:
        self._ask = ask

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if details.method.rpartition("/")[0] not in {f"/{SERVICE}", f"/{OIP_SERVICE}"}:
            return None
        return grpc.unary_unary_rpc_method_handler(partial(self._call, details.method))

    async def _call(self, method: str, message: bytes, context: Context) -> bytes:
        outcome = await self._ask(method, message, shown_id(b"", context))
        if isinstance(outcome, Failure):
            await context.abort(outcome.code, outcome.text)
        return outcome
