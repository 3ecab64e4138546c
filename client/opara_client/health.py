"""``grpc.health.v1`` without grpcio-health-checking.

Its two messages are declared here in a descriptor pool of their own: in the common pool they would clash with the stubs
of grpcio-health-checking in a process that has both.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

CHECK = "/grpc.health.v1.Health/Check"


class HealthStatus(StrEnum):
    UNKNOWN = "UNKNOWN"
    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    SERVICE_UNKNOWN = "SERVICE_UNKNOWN"


_STATUSES = tuple(HealthStatus)  # in the order of the wire's numbers


def _message(name: str, field: str, kind: FieldDescriptorProto.Type.ValueType) -> DescriptorProto:
    optional = FieldDescriptorProto.LABEL_OPTIONAL
    return DescriptorProto(name=name, field=[FieldDescriptorProto(name=field, number=1, type=kind, label=optional)])


def _declare() -> DescriptorPool:
    pool = DescriptorPool()
    file = FileDescriptorProto(
        name="grpc/health/v1/health.proto",
        package="grpc.health.v1",
        syntax="proto3",
        message_type=[
            _message("HealthCheckRequest", "service", FieldDescriptorProto.TYPE_STRING),
            # An enum in the original: on the wire the same as int32.
            _message("HealthCheckResponse", "status", FieldDescriptorProto.TYPE_INT32),
        ],
    )
    pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _declare()
_Request: Any = GetMessageClass(_POOL.FindMessageTypeByName("grpc.health.v1.HealthCheckRequest"))
_Response: Any = GetMessageClass(_POOL.FindMessageTypeByName("grpc.health.v1.HealthCheckResponse"))


def encode_check(service: str) -> bytes:
    """The serialized HealthCheckRequest of ``service``, empty for the whole server."""
    data: bytes = _Request(service=service).SerializeToString()
    return data


def decode_check(data: bytes) -> HealthStatus:
    number = _Response.FromString(data).status
    return _STATUSES[number] if 0 <= number < len(_STATUSES) else HealthStatus.UNKNOWN
