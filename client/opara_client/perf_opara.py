"""``opara.v1.InferenceService`` for the load generator: what a model takes, and messages as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError

from opara_client.errors import Internal, Unavailable, translated
from opara_client.messages import InferRequest, decode_result, encode_request
from opara_client.models import ModelState, decode_model
from opara_client.perf_protocol import Signature
from opara_client.security import Metadata
from opara_client.tensors import Array
from opara_protos.v1 import inference_pb2 as pb
from opara_protos.v1.inference_pb2_grpc import InferenceServiceStub


@dataclass(frozen=True, slots=True)
class OparaProtocol:
    """Implements ``Protocol``."""

    @property
    def method(self) -> str:
        return "/opara.v1.InferenceService/Infer"

    def signature(
        self, channel: grpc.Channel, model: str, timeout_s: float, metadata: Metadata | None = None
    ) -> Signature:
        with translated():
            answer = InferenceServiceStub(channel).GetModel(
                pb.GetModelRequest(model=model), timeout=timeout_s, metadata=metadata
            )
        info = decode_model(answer)
        if info.state is not ModelState.READY:  # its inputs may not be known
            raise Unavailable(f"model {model!r} is {info.state}: {info.why_not_ready}")
        return Signature(info.inputs, info.outputs)

    def encode(self, model: str, inputs: Mapping[str, Array], declared: Mapping[str, str]) -> bytes:
        return encode_request(InferRequest(model, inputs), declared).SerializeToString()

    def decode(self, answer: bytes) -> dict[str, Array]:
        try:
            return dict(decode_result(pb.InferResponse.FromString(answer)))
        except DecodeError as error:
            raise Internal("the answer is no InferResponse") from error
