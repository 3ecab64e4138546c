from __future__ import annotations

import numpy as np
import pytest

from bench.serving.oip import InferRequest, InferResponse
from bench.serving.payloads import PAYLOADS
from bench.serving.protocols import Echo, OparaV1, OpenInference
from opara_protos.v1 import inference_pb2 as pb

X = PAYLOADS["tiny"].draw(np.random.default_rng(0))


def test_ours() -> None:
    request = pb.InferRequest.FromString(OparaV1().encode("tiny", X))
    [tensor] = request.inputs
    assert (request.model, tensor.name, tensor.data_type, list(tensor.shape)) == (
        *("tiny", "x", pb.DATA_TYPE_FLOAT32, [1, 16]),
    )
    answer = pb.InferResponse(outputs=[tensor]).SerializeToString()
    assert (OparaV1().decode(answer) == X).all()


def test_an_echo_answers_with_the_request() -> None:
    assert (Echo().decode(Echo().encode("tiny", X)) == X).all()


def test_oip_sends_raw_tensors() -> None:
    request = InferRequest.FromString(OpenInference().encode("tiny", X))
    [tensor] = request.inputs
    assert (request.model_name, tensor.name, tensor.datatype, list(tensor.shape)) == ("tiny", "x", "FP32", [1, 16])
    assert request.raw_input_contents == [X.tobytes()]


def test_oip_reads_raw_and_typed_answers() -> None:
    raw = InferResponse(raw_output_contents=[X.tobytes()])
    raw.outputs.add(name="y", datatype="FP32", shape=[1, 16])
    typed = InferResponse()
    typed.outputs.add(name="y", datatype="FP32", shape=[1, 16]).contents.fp32_contents.extend(X.ravel().tolist())
    assert (OpenInference().decode(raw.SerializeToString()) == X).all()
    assert (OpenInference().decode(typed.SerializeToString()) == X).all()


def test_oip_has_the_protocols_field_numbers() -> None:
    """Bytes by hand: model_name=1, id=3, inputs=5 {name=1, datatype=2, shape=3 packed}, raw_input_contents=7."""
    tensor = b"\x0a\x01x\x12\x04FP32\x1a\x02\x01\x10"
    by_hand = b"\x0a\x04tiny\x1a\x05bench\x2a" + bytes([len(tensor)]) + tensor + b"\x3a\x40" + X.tobytes()
    assert OpenInference().encode("tiny", X) == by_hand


@pytest.mark.parametrize("protocol", [OparaV1(), OpenInference()])
def test_an_answer_without_a_tensor_is_an_error(protocol: OparaV1 | OpenInference) -> None:
    with pytest.raises(ValueError, match="unpack"):
        protocol.decode(b"")
