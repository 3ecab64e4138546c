"""Inference on any transport: a message in, bytes or a failure out, with nothing of gRPC's event loops in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from opara_server.observe.metrics import Metrics
from opara_server.rpc.errors import Failure, failure
from opara_server.rpc.forms import Buffer, Rejected, Request
from opara_server.rpc.opara_codec import OparaCodec
from opara_server.serving.batcher import Ticket
from opara_server.serving.errors import ServingError, Status
from opara_server.serving.registry import Registry
from opara_server.serving.rows import Rows

Reply = Callable[[bytes | Failure], None]
"""Takes the answer: called exactly once, from the executor's thread or at once from the caller's."""

Write = Callable[[Request, Sequence[Buffer]], bytes]


class Inference:
    """The hot methods. Each returns at once; what it returns can be cancelled, None is answered already. A transport
    calls them from one thread."""

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self._codec = OparaCodec(registry)
        self._metrics = metrics

    def infer(self, message: bytes, deadline: float | None, reply: Reply) -> Ticket | None:
        """``deadline``: on time.monotonic(). The reply is an InferResponse."""
        started = time.perf_counter()
        request = self._codec.read(message)
        return self._submit(request, deadline, reply, self._codec.write, started)

    def infer_streamed(self, message: bytes, deadline: float | None, reply: Reply) -> Ticket | None:
        """A message of InferStream. The reply is an InferStreamResponse: an error ends no stream."""
        started = time.perf_counter()
        request, timeout_us = self._codec.read_streamed(message)
        if timeout_us:
            limit = time.monotonic() + timeout_us / 1e6
            deadline = limit if deadline is None else min(deadline, limit)
        told = partial(_tell, reply, self._codec.fail_streamed, request.id)
        return self._submit(request, deadline, told, self._codec.write_streamed, started)

    def _submit(
        self, request: Request | Rejected, deadline: float | None, reply: Reply, write: Write, started: float
    ) -> Ticket | None:
        if isinstance(request, Rejected):
            self._metrics.request(request.model, request.error.status, time.perf_counter() - started)
            reply(failure(request.error))
            return None
        return request.form.model.batcher.submit(
            request.rows, deadline, partial(self._done, request, reply, write, started)
        )

    def _done(self, request: Request, reply: Reply, write: Write, started: float, answer: Rows | ServingError) -> None:
        outcome: bytes | Failure
        status = Status.OK
        try:
            if isinstance(answer, ServingError):
                raise answer
            outcome = write(request, answer.tensors)
        except ServingError as error:
            outcome, status = failure(error), error.status
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
            outcome, status = failure(error), Status.INTERNAL
        self._metrics.request(request.form.model.name, status, time.perf_counter() - started)
        reply(outcome)


def _tell(reply: Reply, fail: Callable[[bytes, Failure], bytes], request_id: bytes, outcome: bytes | Failure) -> None:
    """A failure as a message of its own."""
    reply(fail(request_id, outcome) if isinstance(outcome, Failure) else outcome)
