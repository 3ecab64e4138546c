"""Inference on any transport: a message in, bytes or a failure out, with nothing of gRPC's event loops in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from opara_server.rpc.errors import Failure, failure, told
from opara_server.rpc.forms import Buffer, Rejected, Request
from opara_server.rpc.oip_codec import OipCodec
from opara_server.rpc.opara_codec import OparaCodec, Streamed
from opara_server.serving.errors import ServingError, Status
from opara_server.serving.models import Cancellable, Models
from opara_server.serving.rows import Rows

Reply = Callable[[bytes | Failure], None]
"""Takes the answer: called exactly once, from the thread that answers batches or at once from the caller's."""

Hot = Callable[[bytes, float | None, Reply], Cancellable | None]
"""A hot method: takes a message and the deadline on time.monotonic(). What it returns can be cancelled."""

Write = Callable[[Request, Sequence[Buffer]], bytes]


class Counting(Protocol):
    def request(self, model: str, code: str, seconds: float) -> None:
        """As Metrics.request."""
        ...


class Inference:
    """The hot methods of both protocols. Each returns at once; what it returns can be cancelled, None is answered
    already. They raise nothing: whatever goes wrong is a reply. A transport calls them from one thread."""

    def __init__(self, models: Models, metrics: Counting) -> None:
        self._opara = OparaCodec(models)
        self._oip = OipCodec(models)
        self._metrics = metrics

    @property
    def unary(self) -> Mapping[str, Hot]:
        """By the methods' full paths. A reply that is no failure is the method's one answer."""
        return {
            "/opara.v1.InferenceService/Infer": self.infer,
            "/inference.GRPCInferenceService/ModelInfer": self.model_infer,
        }

    @property
    def streams(self) -> Mapping[str, Hot]:
        """By the methods' full paths. Each message has one reply, a message of the stream: an error ends no stream."""
        return {
            "/opara.v1.InferenceService/InferStream": self.infer_streamed,
            "/inference.GRPCInferenceService/ModelStreamInfer": self.model_infer_streamed,
        }

    def infer(self, message: bytes, deadline: float | None, reply: Reply) -> Cancellable | None:
        """``deadline``: on time.monotonic(). The reply is an InferResponse."""
        started = time.perf_counter()
        return self._submit(_read(self._opara.read, message), deadline, reply, self._opara.write, started)

    def infer_streamed(self, message: bytes, deadline: float | None, reply: Reply) -> Cancellable | None:
        """A message of InferStream. The reply is an InferStreamResponse."""
        started = time.perf_counter()
        request, timeout_us = _read_streamed(self._opara.read_streamed, message)
        if timeout_us:
            limit = time.monotonic() + timeout_us / 1e6
            deadline = limit if deadline is None else min(deadline, limit)
        tell = partial(_tell, reply, self._opara.fail_streamed, request.id)
        return self._submit(request, deadline, tell, self._opara.write_streamed, started)

    def model_infer(self, message: bytes, deadline: float | None, reply: Reply) -> Cancellable | None:
        """The reply is a ModelInferResponse."""
        started = time.perf_counter()
        return self._submit(_read(self._oip.read, message), deadline, reply, self._oip.write, started)

    def model_infer_streamed(self, message: bytes, deadline: float | None, reply: Reply) -> Cancellable | None:
        """A message of ModelStreamInfer. The reply is a ModelStreamInferResponse."""
        started = time.perf_counter()
        request = _read(self._oip.read, message)
        tell = partial(_tell, reply, self._oip.fail_streamed, request.id)
        return self._submit(request, deadline, tell, self._oip.write_streamed, started)

    def _submit(
        self, request: Request | Rejected, deadline: float | None, reply: Reply, write: Write, started: float
    ) -> Cancellable | None:
        if isinstance(request, Rejected):
            self._metrics.request(request.model, request.error.status, time.perf_counter() - started)
            reply(failure(request.error))
            return None
        form = request.form
        done = partial(self._done, request, reply, write, started)
        return form.model.batcher.submit(
            request.rows, deadline, done, priority=form.priority, timeout_us=form.timeout_us
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


def _read(read: Callable[[bytes], Request | Rejected], message: bytes) -> Request | Rejected:
    try:
        return read(message)
    except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
        return Rejected(told(error))


def _read_streamed(read: Callable[[bytes], Streamed], message: bytes) -> Streamed:
    try:
        return read(message)
    except Exception as error:  # noqa: BLE001 - likewise
        return Streamed(Rejected(told(error)))


def _tell(reply: Reply, fail: Callable[[bytes, Failure], bytes], request_id: bytes, outcome: bytes | Failure) -> None:
    """A failure as a message of its own."""
    reply(fail(request_id, outcome) if isinstance(outcome, Failure) else outcome)
