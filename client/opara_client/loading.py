"""Loading and unloading models: two calls of the Open Inference Protocol, without its stubs.

Their one field is declared here in a descriptor pool of its own: in the common pool it would clash with the stubs of
tritonclient or kserve in a process that has both.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
UNLOAD = "/inference.GRPCInferenceService/RepositoryModelUnload"


def _declare() -> DescriptorPool:
    name = FieldDescriptorProto(
        name="model_name", number=2, type=FieldDescriptorProto.TYPE_STRING, label=FieldDescriptorProto.LABEL_OPTIONAL
    )
    request = DescriptorProto(name="RepositoryModelRequest", field=[name])  # RepositoryModelLoad's and -Unload's
    pool = DescriptorPool()
    file = FileDescriptorProto(
        name="opara_client/loading.proto", package="inference", syntax="proto3", message_type=[request]
    )
    pool.AddSerializedFile(file.SerializeToString())
    return pool


_Request: Any = GetMessageClass(_declare().FindMessageTypeByName("inference.RepositoryModelRequest"))


def encode_load(model: str) -> bytes:
    """The serialized RepositoryModelLoadRequest or RepositoryModelUnloadRequest. There is nothing in the responses."""
    data: bytes = _Request(model_name=model).SerializeToString()
    return data
