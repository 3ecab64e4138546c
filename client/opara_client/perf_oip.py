"""The Open Inference Protocol (KServe v2, as Triton, MLServer and KServe speak it) for the load generator.

Its messages are in a descriptor pool of their own: in the common pool they would clash with the stubs of tritonclient
or kserve in a process that has both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import grpc
import numpy as np
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from opara_client.errors import Internal, InvalidArgument, translated
from opara_client.models import TensorSpec
from opara_client.perf_protocol import Signature
from opara_client.security import Metadata
from opara_client.tensors import Array, from_wire, to_wire
from opara_client.wording import counted

_DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
    "FP64": "float64",
}
_DATATYPES = {dtype: datatype for datatype, dtype in _DTYPES.items()}


def _pool() -> DescriptorPool:
    data = resources.files("opara_protos").joinpath("open_inference.binpb").read_bytes()
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(data).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _pool()


def _message(name: str) -> Any:
    return GetMessageClass(_POOL.FindMessageTypeByName(f"inference.{name}"))


_MetadataRequest, _MetadataResponse = _message("ModelMetadataRequest"), _message("ModelMetadataResponse")
_InferRequest, _InferResponse = _message("ModelInferRequest"), _message("ModelInferResponse")


@dataclass(frozen=True, slots=True)
class OipProtocol:
    """Implements ``Protocol``. Tensors go out raw; answers may come raw or typed."""

    @property
    def method(self) -> str:
        return "/inference.GRPCInferenceService/ModelInfer"

    def signature(
        self, channel: grpc.Channel, model: str, timeout_s: float, metadata: Metadata | None = None
    ) -> Signature:
        ask = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelMetadata",
            _MetadataRequest.SerializeToString,
            _MetadataResponse.FromString,
        )
        with translated():
            answer = ask(_MetadataRequest(name=model), timeout=timeout_s, metadata=metadata)
        return Signature(tuple(map(_spec, answer.inputs)), tuple(map(_spec, answer.outputs)))

    def encode(self, model: str, inputs: Mapping[str, Array], declared: Mapping[str, str]) -> bytes:
        """Raises InvalidArgument for an array that has no place in the protocol."""
        request = _InferRequest(model_name=model)
        for name, array in inputs.items():
            dtype, data = to_wire(array, declared.get(name, ""))
            if dtype not in _DATATYPES:
                raise InvalidArgument(f"input {name!r}: dtype {dtype} has no place in the protocol")
            request.inputs.add(name=name, datatype=_DATATYPES[dtype], shape=array.shape)
            request.raw_input_contents.append(data)
        serialized: bytes = request.SerializeToString()
        return serialized

    def decode(self, answer: bytes) -> dict[str, Array]:
        try:
            response = _InferResponse.FromString(answer)
        except DecodeError as error:
            raise Internal("the answer is no ModelInferResponse") from error
        raw = response.raw_output_contents
        if raw and len(raw) != len(response.outputs):
            raise Internal(
                f"the answer has {counted(len(raw), 'raw tensor')} for {counted(len(response.outputs), 'output')}"
            )
        pairs = zip(response.outputs, raw or [None] * len(response.outputs), strict=True)
        return {tensor.name: _decode(tensor, data) for tensor, data in pairs}


def _spec(metadata: Any) -> TensorSpec:
    """Datatypes that numpy has not, such as BYTES, keep the protocol's name."""
    return TensorSpec(metadata.name, _DTYPES.get(metadata.datatype, metadata.datatype), tuple(metadata.shape))


def _decode(tensor: Any, raw: bytes | None) -> Array:
    """``raw``: None where the tensor has typed contents. BYTES come as an array of ``bytes``."""
    dtype, shape = _DTYPES.get(tensor.datatype), tuple(tensor.shape)
    if raw is not None and dtype is not None:
        return from_wire(tensor.name, dtype, shape, raw)
    if raw is None:
        elements = [element for _, values in tensor.contents.ListFields() for element in values]
        array: Array = np.array(elements, dtype or object)
    else:
        array = np.array(_split(tensor.name, raw), object)
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise Internal(f"output {tensor.name!r}: {counted(array.size, 'element')} for shape {list(shape)}") from error


def _split(name: str, raw: bytes) -> list[bytes]:
    """The elements of a BYTES tensor: each its length in 4 bytes, little-endian, and its bytes."""
    elements, at = [], 0
    while at < len(raw):
        start = at + 4
        at = start + int.from_bytes(raw[start - 4 : start], "little")
        elements.append(raw[start:at])
    if at != len(raw):
        raise Internal(f"output {name!r}: its last element is cut short")
    return elements
