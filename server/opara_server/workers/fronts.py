"""The engine's front: workers take the calls. It has their requests through the desk, and all else as messages."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc

from opara_server.observe.metrics import Metrics
from opara_server.observe.request_log import ID_HEADER
from opara_server.observe.tracing import Metadata
from opara_server.rpc.errors import Failure, failure
from opara_server.serving.registry import Registry
from opara_server.workers.desk import Desk
from opara_server.workers.link import End
from opara_server.workers.messages import Messages

_NO_METHOD = Failure(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


class Fronts:
    """All workers, in place of a gRPC server. On the event loop that is running."""

    def __init__(
        self, registry: Registry, metrics: Metrics, handlers: Sequence[grpc.GenericRpcHandler[bytes, bytes]]
    ) -> None:
        """``handlers``: of the methods that workers pass on."""
        self._desk = Desk(registry, metrics)
        self._handlers = handlers
        self._loop = asyncio.get_running_loop()
        self._health: dict[str, bool] = {}
        self._workers: set[Messages] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._telling = False

    async def listen(self) -> str:
        """It has no address of its own."""
        self._desk.start()
        return ""

    async def attach(self, end: End, broken: Callable[[], None]) -> None:
        """Serve another worker, until it is gone. ``broken``: see ``Desk.open``."""
        self._desk.open(end.memory, end.submissions, end.completions, broken)
        os.close(end.memory)  # it is mapped: else it would stay when its worker has gone
        worker = await Messages.open(end.messages)
        self._workers.add(worker)
        worker.send(self._state())
        self._begin(self._hear(worker))

    def set(self, name: str, serving: bool) -> None:
        self._health[name] = serving
        if not self._telling:
            self._telling = True
            self._loop.call_soon(self._tell)  # once for all that changes together

    def drain(self) -> None:
        for name in self._health:
            self.set(name, serving=False)

    async def stop(self, grace_s: float) -> None:  # noqa: ARG002 - workers have had theirs
        """Once the workers have stopped."""
        await asyncio.to_thread(self._desk.stop)
        for worker in self._workers:
            worker.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _tell(self) -> None:
        self._telling = False
        state = self._state()
        for worker in self._workers:
            worker.send(state)

    def _state(self) -> dict[str, Any]:
        return {"health": self._health, **self._desk.catalogue.describe()}

    async def _hear(self, worker: Messages) -> None:
        async for said, message in worker.received():
            self._begin(self._answer(worker, said, message))
        self._workers.discard(worker)
        worker.close()

    async def _answer(self, worker: Messages, said: Mapping[str, Any], message: bytes) -> None:
        outcome = await self._called(said["method"], message, _Context(said["request_id"]))
        if isinstance(outcome, Failure):
            worker.send({"reply": said["call"], "code": outcome.code.name, "text": outcome.text})
        else:
            worker.send({"reply": said["call"]}, outcome)

    async def _called(self, method: str, message: bytes, context: _Context) -> bytes | Failure:
        details: Any = _Details(method)
        handler = next((found for h in self._handlers if (found := h.service(details)) is not None), None)
        if handler is None or handler.unary_unary is None:
            return _NO_METHOD
        called: Any = handler.unary_unary
        try:
            answer: bytes = await called(message, context)
        except _FailedError as error:
            return error.failure
        except Exception as error:  # noqa: BLE001 - the edge: a client must hear of whatever it is
            return failure(error)
        return answer

    def _begin(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass(frozen=True)
class _Details:
    method: str
    invocation_metadata: Any = ()


class _Context:
    """As much of a call as methods that are passed on use, and the log. ``request_id``: empty where it has none."""

    def __init__(self, request_id: str) -> None:
        self._metadata = ((ID_HEADER, request_id),) if request_id else ()

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    async def abort(self, code: grpc.StatusCode, text: str) -> NoReturn:
        raise _FailedError(Failure(code, text))


class _FailedError(Exception):
    def __init__(self, why: Failure) -> None:
        super().__init__(why.text)
        self.failure = why
