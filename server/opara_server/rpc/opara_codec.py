"""opara.v1: requests from the wire, answers onto it, each with one copy of a tensor, to and from staging memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from opara_protos.v1 import inference_pb2 as pb
from opara_server.engine.spec import TensorSpec
from opara_server.rpc.errors import Failure
from opara_server.rpc.forms import Buffer, Form, Forms, Rejected, Request, check_bools, join_answer
from opara_server.rpc.scan import Cut, scan_infer, scan_streamed, varint
from opara_server.rpc.wire import DATA_TYPES, decode, parse, wanted_outputs
from opara_server.serving.errors import InvalidInput, ServingError
from opara_server.serving.models import Model, Models

_ID, _OUTPUTS, _DATA = b"\x12", b"\x1a", b"\x22"  # of InferResponse and Tensor
_STREAMED_ID, _STREAMED_RESPONSE = b"\x0a", b"\x12"  # of InferStreamResponse


class Streamed(NamedTuple):
    """A request of InferStream. ``timeout_us``: 0 sets no limit."""

    request: Request | Rejected
    timeout_us: int = 0


class OparaCodec:
    """Not thread-safe, but ``write`` is for every thread."""

    def __init__(self, registry: Models) -> None:
        self._registry = registry
        self._forms = Forms(registry)

    def read(self, message: bytes) -> Request | Rejected:
        """Of an InferRequest. The rows are views of ``message``."""
        return self._read(message, 0, len(message))

    def write(self, request: Request, outputs: Sequence[Buffer]) -> bytes:
        """An InferResponse. ``outputs``: per output of the model as many rows as the request has; they are copied."""
        return join_answer(_ID, request, outputs)

    def read_streamed(self, message: bytes) -> Streamed:
        """Of an InferStreamRequest."""
        if found := scan_streamed(message):
            (begin, end), timeout_us = found
            return Streamed(self._read(message, begin, end), timeout_us)
        try:
            streamed = parse(pb.InferStreamRequest, message)
        except ServingError as error:
            return Streamed(Rejected(error))
        if streamed.timeout_us < 0:
            refusal = InvalidInput(f"timeout_us must not be negative, got {streamed.timeout_us}")
            return Streamed(Rejected(refusal, streamed.request.model, streamed.request.id.encode()))
        return Streamed(self._decided(streamed.request, None), streamed.timeout_us)

    def write_streamed(self, request: Request, outputs: Sequence[Buffer]) -> bytes:
        """An InferStreamResponse."""
        response = self.write(request, outputs)
        parts = [_STREAMED_RESPONSE, varint(len(response)), response]
        if request.id:
            parts = [_STREAMED_ID, varint(len(request.id)), request.id, *parts]
        return b"".join(parts)

    def fail_streamed(self, request_id: bytes, why: Failure) -> bytes:
        """An InferStreamResponse."""
        response = pb.InferStreamResponse(id=request_id.decode())
        response.error.code, response.error.message = why.number, why.text
        return response.SerializeToString()

    def _read(self, message: bytes, begin: int, end: int) -> Request | Rejected:
        if known := self._forms.recall(message, begin, end):
            return known
        cut = scan_infer(message, begin, end)
        if known := self._forms.read(message, begin, end, cut):
            return known
        try:
            request = parse(pb.InferRequest, message[begin:end])
        except ServingError as error:
            return Rejected(error)
        return self._decided(request, cut)

    def _decided(self, request: pb.InferRequest, cut: Cut | None) -> Request | Rejected:
        """Checks all that a client may get wrong."""
        try:
            model = self._registry.get(request.model)
            rows = decode(request, model.inputs, model.max_rows)
            wanted = wanted_outputs(request.outputs, model.outputs)
            check_bools(rows.tensors, model.inputs)
        except ServingError as error:
            return Rejected(error, request.model, request.id.encode())
        form = _form(model, rows.count, [tensor.name for tensor in request.inputs], wanted)
        if cut is not None:
            self._forms.keep(cut.key, form)
        return Request(form, request.id.encode(), rows)


def _form(model: Model, count: int, names: Sequence[str], wanted: tuple[int, ...]) -> Form:
    """``names``: of the request's tensors, in its order."""
    return Form(
        model=model,
        count=count,
        order=tuple(names.index(spec.name) for spec in model.inputs),
        wanted=wanted,
        bools=any(spec.dtype == "bool" for spec in model.inputs),
        head=pb.InferResponse(model=model.name).SerializeToString(),
        heads=tuple(_head(model.outputs[index], count) for index in wanted),
    )


def _head(spec: TensorSpec, count: int) -> bytes:
    """Of an output in InferResponse, up to its data."""
    tensor = pb.Tensor(name=spec.name, data_type=DATA_TYPES[spec.dtype], shape=(count, *spec.shape)).SerializeToString()
    size = count * spec.row_bytes
    if size:
        tensor += _DATA + varint(size)
    return _OUTPUTS + varint(len(tensor) + size) + tensor
