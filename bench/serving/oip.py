"""The part of the Open Inference Protocol that one ModelInfer needs, in a descriptor pool of its own.

Fields and numbers: https://github.com/kserve/open-inference-protocol. What is not declared here is skipped when read.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_Field = FieldDescriptorProto
STRING, BYTES, INT64, FLOAT = _Field.TYPE_STRING, _Field.TYPE_BYTES, _Field.TYPE_INT64, _Field.TYPE_FLOAT
ONE, MANY = _Field.LABEL_OPTIONAL, _Field.LABEL_REPEATED


def _field(
    name: str, number: int, kind: _Field.Type.ValueType | str, label: _Field.Label.ValueType
) -> FieldDescriptorProto:
    """``kind``: a scalar type, or the name of a message."""
    if isinstance(kind, str):
        named = f".inference.{kind}"
        return _Field(name=name, number=number, type=_Field.TYPE_MESSAGE, type_name=named, label=label)
    return _Field(name=name, number=number, type=kind, label=label)


_FILE = FileDescriptorProto(
    name="bench/inference.proto",
    package="inference",
    syntax="proto3",
    message_type=[
        DescriptorProto(name="InferTensorContents", field=[_field("fp32_contents", 6, FLOAT, MANY)]),
        DescriptorProto(
            name="InferTensor",
            field=[
                _field("name", 1, STRING, ONE),
                _field("datatype", 2, STRING, ONE),
                _field("shape", 3, INT64, MANY),
                _field("contents", 5, "InferTensorContents", ONE),
            ],
        ),
        DescriptorProto(
            name="ModelInferRequest",
            field=[
                _field("model_name", 1, STRING, ONE),
                _field("id", 3, STRING, ONE),
                _field("inputs", 5, "InferTensor", MANY),
                _field("raw_input_contents", 7, BYTES, MANY),
            ],
        ),
        DescriptorProto(
            name="ModelInferResponse",
            field=[
                _field("model_name", 1, STRING, ONE),
                _field("id", 3, STRING, ONE),
                _field("outputs", 5, "InferTensor", MANY),
                _field("raw_output_contents", 6, BYTES, MANY),
            ],
        ),
    ],
)
_POOL = DescriptorPool()
_POOL.Add(_FILE)

InferRequest: Any = GetMessageClass(_POOL.FindMessageTypeByName("inference.ModelInferRequest"))
InferResponse: Any = GetMessageClass(_POOL.FindMessageTypeByName("inference.ModelInferResponse"))
