"""Inference on any transport: a message in, bytes or a failure out, with nothing of gRPC's event loops in between.

Of every request there is a count; of one that is sampled a span and exemplars, of a share a line in the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import random
from typing import Protocol

from opara_server.observe.request_log import MOST_SHOWN, log_request, shown_id
from opara_server.observe.tracing import Call, RequestSpan, Tracer
from opara_server.rpc.errors import Failure, failure, told
from opara_server.rpc.forms import Buffer, Rejected, Request
from opara_server.rpc.oip_codec import OipCodec
from opara_server.rpc.opara_codec import OparaCodec, Streamed
from opara_server.serving.errors import ServingError, Status
from opara_server.serving.models import Cancellable, Models
from opara_server.serving.rows import Rows

Reply = Callable[[bytes | Failure], None]
"""Takes the answer: called exactly once, from the thread that answers batches or at once from the caller's."""

Hot = Callable[[bytes, float | None, Reply, Call], Cancellable | None]
"""A hot method: takes a message, the deadline on time.monotonic(), and the call that the message is of. What it returns
can be cancelled."""

Asked = tuple[str, Call, RequestSpan | None, float]
"""Of a request: its method's full path, its call, its span if it is sampled, when it came on time.perf_counter()."""

Write = Callable[[Request, Sequence[Buffer]], bytes]

INFER = "/opara.v1.InferenceService/Infer"
INFER_STREAM = "/opara.v1.InferenceService/InferStream"
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
MODEL_STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"


class Counting(Protocol):
    """What is used of Metrics."""

    def receive(self, model: str) -> None: ...
    def refuse(self, model: str, code: str, seconds: float) -> None: ...
    def request(self, model: str, code: str, seconds: float) -> None: ...
    def exemplar(self, model: str, code: str, seconds: float, trace_id: int) -> None: ...


class Inference:
    """The hot methods of both protocols. Each returns at once; what it returns can be cancelled, None is answered
    already. They raise nothing: whatever goes wrong is a reply. A transport calls them from one thread."""

    def __init__(self, models: Models, metrics: Counting, tracer: Tracer | None = None, log_share: float = 0.0) -> None:
        """``log_share``: of requests that get a line in the log, by chance; faults of the server always do."""
        self._opara = OparaCodec(models)
        self._oip = OipCodec(models)
        self._metrics = metrics
        self._tracer = tracer
        self._log_share = log_share

    @property
    def unary(self) -> Mapping[str, Hot]:
        """By the methods' full paths. A reply that is no failure is the method's one answer."""
        return {
            INFER: self.infer,
            MODEL_INFER: self.model_infer,
        }

    @property
    def streams(self) -> Mapping[str, Hot]:
        """By the methods' full paths. Each message has one reply, a message of the stream: an error ends no stream."""
        return {
            INFER_STREAM: self.infer_streamed,
            MODEL_STREAM_INFER: self.model_infer_streamed,
        }

    def infer(self, message: bytes, deadline: float | None, reply: Reply, call: Call) -> Cancellable | None:
        """``deadline``: on time.monotonic(). The reply is an InferResponse."""
        asked = self._asked(INFER, call)
        return self._submit(_read(self._opara.read, message, call), deadline, reply, self._opara.write, asked)

    def infer_streamed(self, message: bytes, deadline: float | None, reply: Reply, call: Call) -> Cancellable | None:
        """A message of InferStream. The reply is an InferStreamResponse."""
        asked = self._asked(INFER_STREAM, call)
        request, timeout_us = _read_streamed(self._opara.read_streamed, message, call)
        if timeout_us:
            limit = time.monotonic() + timeout_us / 1e6
            deadline = limit if deadline is None else min(deadline, limit)
        tell = partial(_tell, reply, self._opara.fail_streamed, request.id)
        return self._submit(request, deadline, tell, self._opara.write_streamed, asked)

    def model_infer(self, message: bytes, deadline: float | None, reply: Reply, call: Call) -> Cancellable | None:
        """The reply is a ModelInferResponse."""
        asked = self._asked(MODEL_INFER, call)
        return self._submit(_read(self._oip.read, message, call), deadline, reply, self._oip.write, asked)

    def model_infer_streamed(
        self, message: bytes, deadline: float | None, reply: Reply, call: Call
    ) -> Cancellable | None:
        """A message of ModelStreamInfer. The reply is a ModelStreamInferResponse."""
        asked = self._asked(MODEL_STREAM_INFER, call)
        request = _read(self._oip.read, message, call)
        tell = partial(_tell, reply, self._oip.fail_streamed, request.id)
        return self._submit(request, deadline, tell, self._oip.write_streamed, asked)

    def _asked(self, method: str, call: Call) -> Asked:
        started = time.perf_counter()
        return method, call, None if self._tracer is None else self._tracer.begin(method, call), started

    def _submit(
        self, request: Request | Rejected, deadline: float | None, reply: Reply, write: Write, asked: Asked
    ) -> Cancellable | None:
        if isinstance(request, Rejected):
            why, seconds = failure(request.error), time.perf_counter() - asked[3]
            self._metrics.refuse(request.model, request.error.status, seconds)
            self._tell(asked, request.model, request.error.status, seconds, why, request.id, 0)
            reply(why)
            return None
        form, span = request.form, asked[2]
        self._metrics.receive(form.model.name)
        done = partial(self._done, request, reply, write, asked)
        try:
            return form.model.batcher.submit(
                request.rows,
                deadline,
                done,
                priority=form.priority,
                timeout_us=form.timeout_us,
                span=None if span is None else span.context,
            )
        except Exception as error:  # noqa: BLE001 - likewise: a transport that only logs it would keep the client waiting
            done(told(error, asked[1]))
            return None

    def _done(self, request: Request, reply: Reply, write: Write, asked: Asked, answer: Rows | ServingError) -> None:
        outcome: bytes | Failure
        status = Status.OK
        try:
            if isinstance(answer, ServingError):
                raise answer
            outcome = write(request, answer.tensors)
        except ServingError as error:
            outcome, status = failure(error), error.status
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
            outcome, status = failure(error, asked[1]), Status.INTERNAL
        name, seconds = request.form.model.name, time.perf_counter() - asked[3]
        self._metrics.request(name, status, seconds)
        if asked[2] is not None or self._log_share or status is Status.INTERNAL:
            self._tell(asked, name, status, seconds, outcome, request.id, request.form.count)
        reply(outcome)

    def _tell(
        self,
        asked: Asked,
        model: str,
        status: Status,
        seconds: float,
        outcome: bytes | Failure,
        request_id: bytes,
        rows: int,
    ) -> None:
        """Of what is sampled, and what is logged. ``model``, ``request_id``: as the client gave them. ``rows``: 0 where
        they are not known."""
        method, call, span, _ = asked
        logged = status is Status.INTERNAL or random() < self._log_share
        if span is None and not logged:
            return
        name, text = shown_id(request_id, call), outcome.text if isinstance(outcome, Failure) else ""
        if span is not None:
            self._metrics.exemplar(model, status, seconds, span.context.trace_id)
            code = outcome.number if isinstance(outcome, Failure) else 0
            span.end(code=code, text=text, model=model[:MOST_SHOWN], rows=rows, request_id=name)
        if logged:
            context = None if span is None else span.context
            log_request(method, model[:MOST_SHOWN], status, seconds, rows, name, text, context)


def _read(read: Callable[[bytes], Request | Rejected], message: bytes, call: Call) -> Request | Rejected:
    try:
        return read(message)
    except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
        return Rejected(told(error, call))


def _read_streamed(read: Callable[[bytes], Streamed], message: bytes, call: Call) -> Streamed:
    try:
        return read(message)
    except Exception as error:  # noqa: BLE001 - likewise
        return Streamed(Rejected(told(error, call)))


def _tell(reply: Reply, fail: Callable[[bytes, Failure], bytes], request_id: bytes, outcome: bytes | Failure) -> None:
    """A failure as a message of its own."""
    reply(fail(request_id, outcome) if isinstance(outcome, Failure) else outcome)
