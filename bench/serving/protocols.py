"""How a tensor is put into a request and taken out of an answer: one class per protocol that a server may speak."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from bench.serving.oip import InferRequest as OipRequest
from bench.serving.oip import InferResponse as OipResponse
from bench.serving.payloads import Floats
from opara_protos.v1 import inference_pb2 as pb

REQUEST_ID = "bench"


class WireProtocol(Protocol):
    """``name``: as options and tables have it. ``method``: the RPC, as in an HTTP/2 path."""

    name: str
    method: str

    def encode(self, model: str, x: Floats) -> bytes:
        """A request for ``model`` with the one input ``x``."""
        ...

    def decode(self, message: bytes) -> Floats:
        """The one output of an answer. Raises ValueError or protobuf's DecodeError where it is none."""
        ...


class OparaV1:
    name = "opara.v1"
    method = "/opara.v1.InferenceService/Infer"

    def encode(self, model: str, x: Floats) -> bytes:
        tensor = pb.Tensor(name="x", data_type=pb.DATA_TYPE_FLOAT32, shape=x.shape, data=x.tobytes())
        return pb.InferRequest(model=model, id=REQUEST_ID, inputs=[tensor]).SerializeToString()

    def decode(self, message: bytes) -> Floats:
        [tensor] = pb.InferResponse.FromString(message).outputs
        return np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)


class Echo:
    """A server that sends back what it got, whatever that is: our requests are sent."""

    name = "echo"
    method = OparaV1.method

    def encode(self, model: str, x: Floats) -> bytes:
        return OparaV1().encode(model, x)

    def decode(self, message: bytes) -> Floats:
        [tensor] = pb.InferRequest.FromString(message).inputs
        return np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)


class OpenInference:
    """The Open Inference Protocol (KServe v2), with raw tensors."""

    name = "oip"
    method = "/inference.GRPCInferenceService/ModelInfer"

    def encode(self, model: str, x: Floats) -> bytes:
        request = OipRequest(model_name=model, id=REQUEST_ID, raw_input_contents=[x.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=x.shape)
        return bytes(request.SerializeToString())

    def decode(self, message: bytes) -> Floats:
        response = OipResponse.FromString(message)
        [tensor] = response.outputs
        if response.raw_output_contents:
            [data] = response.raw_output_contents
            flat = np.frombuffer(data, np.float32)
        else:
            flat = np.array(tensor.contents.fp32_contents, np.float32)
        return flat.reshape(tensor.shape)
