"""Message classes of the Open Inference Protocol, and what reflection tells of all services.

The protocol's classes are made from a committed descriptor set in a pool of their own: in the common one they would
clash with the stubs of any of its clients in the same process.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from opara_protos.v1 import inference_pb2

OIP_SERVICE = "inference.GRPCInferenceService"
_FILES = FileDescriptorSet.FromString(resources.files("opara_protos").joinpath("open_inference.binpb").read_bytes())


def _pool(*files: FileDescriptor) -> DescriptorPool:
    """Of the protocol's messages and services, and those of the ``files``."""
    pool = DescriptorPool()
    for file in _FILES.file:
        pool.AddSerializedFile(file.SerializeToString())
    for other in files:
        pool.AddSerializedFile(other.serialized_pb)
    return pool


_OIP = _pool()


def message_class(name: str) -> Any:
    """Of the Open Inference Protocol's message ``name``. Raises KeyError."""
    return GetMessageClass(_OIP.FindMessageTypeByName(f"inference.{name}"))


def oip_methods() -> list[str]:
    """Names of its RPCs."""
    return [method.name for method in _OIP.FindServiceByName(OIP_SERVICE).methods]


def reflection_pool() -> DescriptorPool:
    """Every service of this server."""
    return _pool(inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
