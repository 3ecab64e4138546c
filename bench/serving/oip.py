"""The messages of the Open Inference Protocol's ModelInfer, in a descriptor pool of their own."""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass


def _pool() -> DescriptorPool:
    described = resources.files("opara_protos").joinpath("open_inference.binpb").read_bytes()
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(described).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _pool()
InferRequest: Any = GetMessageClass(_POOL.FindMessageTypeByName("inference.ModelInferRequest"))
InferResponse: Any = GetMessageClass(_POOL.FindMessageTypeByName("inference.ModelInferResponse"))
