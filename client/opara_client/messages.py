"""Requests and results, and their protobuf messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from opara_client.errors import OparaError, error_for
from opara_client.tensors import Array, decode, encode
from opara_protos.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True, eq=False)
class InferRequest:
    """One request of a stream.

    ``inputs``: array by input name; the first dimension of each counts rows. ``outputs``: the wanted, empty for all.
    ``timeout``: seconds from when the server has read it; None for the client's own. ``id``: empty for one chosen here.
    Raises TypeError where ``inputs`` is no mapping.
    """

    model: str
    inputs: Mapping[str, Array]
    outputs: Sequence[str] = ()
    timeout: float | None = None
    id: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.inputs, Mapping):
            raise TypeError(f"inputs must map names to arrays: {{name: array}}, not {type(self.inputs).__name__}")


@dataclass(frozen=True, slots=True, eq=False)
class InferResult(Mapping[str, Array]):
    """The arrays of one answer by output name, in the model's order: ``result["probs"]``, ``dict(result)``.

    The arrays are read-only views of the received message: copy one to write to it. bfloat16 outputs come as float32.
    """

    model: str
    id: str
    outputs: Mapping[str, Array]

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)


def encode_request(request: InferRequest, declared: Mapping[str, str]) -> pb.InferRequest:
    """``declared``: dtype by input name, as far as known."""
    return pb.InferRequest(
        model=request.model,
        id=request.id,
        inputs=[encode(name, array, declared.get(name, "")) for name, array in request.inputs.items()],
        outputs=request.outputs,
    )


def encode_stream_request(
    request: InferRequest, declared: Mapping[str, str], timeout: float | None
) -> pb.InferStreamRequest:
    """``timeout``: seconds, for a request without its own."""
    seconds = timeout if request.timeout is None else request.timeout
    # 0 on the wire means no limit; a caller's 0 means that it is too late already.
    timeout_us = 0 if seconds is None else max(1, round(seconds * 1e6))
    return pb.InferStreamRequest(request=encode_request(request, declared), timeout_us=timeout_us)


def decode_result(response: pb.InferResponse) -> InferResult:
    outputs = {tensor.name: decode(tensor) for tensor in response.outputs}
    return InferResult(response.model, response.id, MappingProxyType(outputs))


def decode_answer(answer: pb.InferStreamResponse) -> InferResult | OparaError:
    """A broken tensor is this request's error and leaves the stream open, as any other error of a request."""
    if answer.WhichOneof("result") == "response":
        try:
            return decode_result(answer.response)
        except OparaError as error:
            return error
    return error_for(answer.error.code, answer.error.message)
