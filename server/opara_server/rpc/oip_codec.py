"""The Open Inference Protocol: requests from the wire, answers onto it, each with one copy of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opara_server.engine.spec import TensorSpec
from opara_server.rpc.descriptors import message_class
from opara_server.rpc.errors import Failure
from opara_server.rpc.forms import Buffer, Form, Forms, Rejected, Request, check_bools, join_answer
from opara_server.rpc.oip_wire import DATATYPES, check_parameters, number, output_names, tensors
from opara_server.rpc.scan import Cut, scan_model_infer, varint
from opara_server.rpc.wire import decode_tensors, parse, shown, wanted_outputs
from opara_server.serving.errors import ModelNotFound, ServingError
from opara_server.serving.models import Model, Models

VERSION = "1"  # of every model: there is one at a time

_ModelInferRequest = message_class("ModelInferRequest")
_ModelInferResponse = message_class("ModelInferResponse")
_ModelStreamInferResponse = message_class("ModelStreamInferResponse")
_ID, _RAW = b"\x1a", b"\x32"  # of ModelInferResponse
_STREAMED_RESPONSE = b"\x12"  # of ModelStreamInferResponse


def check_version(model: str, version: str) -> None:
    """Empty is the newest. Raises ModelNotFound."""
    if version not in {"", VERSION}:
        raise ModelNotFound(f"model {model!r} has no version {shown(version)}, only {VERSION!r}")


class OipCodec:
    """Not thread-safe, but ``write`` is for every thread."""

    def __init__(self, registry: Models) -> None:
        self._registry = registry
        self._forms = Forms(registry)

    def read(self, message: bytes) -> Request | Rejected:
        """Of a ModelInferRequest. The rows are views of ``message``, but for typed contents."""
        end = len(message)
        if known := self._forms.recall(message, 0, end):
            return known
        cut = scan_model_infer(message)
        if known := self._forms.read(message, 0, end, cut):
            return known
        try:
            request = parse(_ModelInferRequest, message)
        except ServingError as error:
            return Rejected(error)
        return self._decided(request, cut)

    def write(self, request: Request, outputs: Sequence[Buffer]) -> bytes:
        """A ModelInferResponse. ``outputs``: per output of the model as many rows as the request has; copied."""
        return join_answer(_ID, request, outputs)

    def write_streamed(self, request: Request, outputs: Sequence[Buffer]) -> bytes:
        """A ModelStreamInferResponse."""
        response = self.write(request, outputs)
        return b"".join((_STREAMED_RESPONSE, varint(len(response)), response))

    def fail_streamed(self, request_id: bytes, why: Failure) -> bytes:
        """A ModelStreamInferResponse: the text begins with the status, which has no field of its own; the id is where
        an answer has it."""
        response = _ModelStreamInferResponse(error_message=f"{why.code.name}: {why.text}")
        response.infer_response.id = request_id.decode()
        message: bytes = response.SerializeToString()
        return message

    def _decided(self, request: Any, cut: Cut | None) -> Request | Rejected:
        """Checks all that a client may get wrong."""
        try:
            model = self._registry.get(request.model_name)
            check_version(model.name, request.model_version)
            check_parameters(request.parameters)
            priority, timeout_us = number(request.parameters, "priority"), number(request.parameters, "timeout")
            rows = decode_tensors(tensors(request), model.inputs, model.max_rows, DATATYPES)
            wanted = wanted_outputs(output_names(request), model.outputs)
            check_bools(rows.tensors, model.inputs)
        except ServingError as error:
            return Rejected(error, request.model_name, request.id.encode())
        names = [tensor.name for tensor in request.inputs]
        form = Form(
            model=model,
            count=rows.count,
            order=tuple(names.index(spec.name) for spec in model.inputs),
            wanted=wanted,
            bools=any(spec.dtype == "bool" for spec in model.inputs),
            head=_ModelInferResponse(model_name=model.name, model_version=VERSION).SerializeToString(),
            heads=_heads(model, rows.count, wanted),
            priority=priority,
            timeout_us=timeout_us,
        )
        if cut is not None and len(cut.data) == len(names):  # typed contents are part of the key
            self._forms.keep(cut.key, form)
        return Request(form, request.id.encode(), rows)


def _heads(model: Model, count: int, wanted: tuple[int, ...]) -> tuple[bytes, ...]:
    """All outputs come ahead of the first one's data."""
    specs = [model.outputs[index] for index in wanted]
    heads = [_RAW + varint(count * spec.row_bytes) for spec in specs]
    heads[0] = b"".join(_described(spec, count) for spec in specs) + heads[0]
    return tuple(heads)


def _described(spec: TensorSpec, count: int) -> bytes:
    """An output of a ModelInferResponse that has nothing else."""
    response = _ModelInferResponse()
    response.outputs.add(name=spec.name, datatype=DATATYPES[spec.dtype], shape=(count, *spec.shape))
    described: bytes = response.SerializeToString()
    return described
