"""The client of opara-serve: numpy arrays in, numpy arrays out, over gRPC. Needs grpcio, protobuf and numpy only.

>>> with OparaClient("dns:///127.0.0.1:50051") as client:
...     result = client.infer("digits", {"image": images})
...     result["probs"].argmax(axis=1)
"""

from opara_client.aio import AsyncOparaClient
from opara_client.client import OparaClient
from opara_client.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    OparaError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from opara_client.health import HealthStatus
from opara_client.messages import InferRequest, InferResult
from opara_client.models import Bucket, Candidate, ModelInfo, ModelState, ModelStatus, TensorSpec
from opara_client.profiles import BucketProfile, Interval
from opara_client.security import Tls

__all__ = [
    "AsyncOparaClient",
    "Bucket",
    "BucketProfile",
    "Cancelled",
    "Candidate",
    "DeadlineExceeded",
    "HealthStatus",
    "InferRequest",
    "InferResult",
    "Internal",
    "Interval",
    "InvalidArgument",
    "ModelInfo",
    "ModelState",
    "ModelStatus",
    "NotFound",
    "OparaClient",
    "OparaError",
    "PermissionDenied",
    "ResourceExhausted",
    "TensorSpec",
    "Tls",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
]
