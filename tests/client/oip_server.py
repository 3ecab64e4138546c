"""A server of the Open Inference Protocol, written from the numbers of its fields alone.

Models: ``double`` takes x FP32[-1, 2] and answers y, its double. ``typed`` answers in typed contents. ``mute`` declares
nothing. ``bytes`` answers BYTES.
"""

from __future__ import annotations

import grpc
import numpy as np

from tests.client.raw_server import Fields, RawServer, field, packed, parse, unpacked

METADATA = "/inference.GRPCInferenceService/ModelMetadata"
INFER = "/inference.GRPCInferenceService/ModelInfer"
MODELS = (b"double", b"typed", b"mute", b"bytes")


def oip_server() -> RawServer:
    return RawServer({METADATA: _metadata, INFER: _infer})


def tensor(name: str, datatype: str, shape: list[int]) -> bytes:
    """TensorMetadata, InferInputTensor and InferOutputTensor alike."""
    return field(1, name) + field(2, datatype) + field(3, packed(shape))


def _metadata(request: bytes, context: grpc.ServicerContext) -> bytes:
    (name,) = parse(request)[1]
    if name not in MODELS:
        context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
    if name == b"mute":
        return field(1, "mute")
    datatype = "BYTES" if name == b"bytes" else "FP32"
    spec = [tensor(one, kind, [-1, 2]) for one, kind in (("x", "FP32"), ("y", datatype))]
    return field(1, "double") + field(2, "1") + field(3, "test") + field(4, spec[0]) + field(5, spec[1])


def _infer(request: bytes, _context: grpc.ServicerContext) -> bytes:
    message = parse(request)
    (model,), (data,) = message[1], message[7]
    given: Fields = parse(_bytes(message[5][0]))
    assert given[2] == [b"FP32"]
    shape = unpacked(given[3][0])
    doubled = np.frombuffer(_bytes(data), "<f4") * np.float32(2)
    head = field(1, _bytes(model)) + field(3, "7") + field(4, field(1, "a parameter"))
    if model == b"typed":
        return head + field(5, tensor("y", "FP32", shape) + field(5, field(6, doubled.tobytes())))
    if model == b"bytes":
        elements = [str(value).encode() for value in doubled.tolist()]
        raw = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
        return head + field(5, tensor("y", "BYTES", shape)) + field(6, raw)
    return head + field(5, tensor("y", "FP32", shape)) + field(6, doubled.tobytes())


def _bytes(value: int | bytes) -> bytes:
    assert isinstance(value, bytes)
    return value
