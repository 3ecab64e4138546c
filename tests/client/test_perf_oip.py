from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from opara_client.errors import Internal, InvalidArgument, NotFound
from opara_client.models import TensorSpec
from opara_client.perf_oip import OipProtocol
from opara_client.perf_protocol import Signature
from opara_client.tensors import Array
from tests.client.fake_server import PATIENCE_S
from tests.client.oip_server import oip_server, tensor
from tests.client.raw_server import field, parse, unpacked

OIP = OipProtocol()
X = np.array([[1.0, 2.5]], np.float32)


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    with oip_server() as server, grpc.insecure_channel(server.target) as connected:
        yield connected


def test_a_model_says_what_it_takes(channel: grpc.Channel) -> None:
    specs = tuple(TensorSpec(name, "float32", (-1, 2)) for name in "xy")
    assert OIP.signature(channel, "double", 10) == Signature(specs[:1], specs[1:])
    assert OIP.signature(channel, "bytes", 10).outputs == (TensorSpec("y", "BYTES", (-1, 2)),)
    assert OIP.signature(channel, "mute", 10) == Signature((), ())
    with pytest.raises(NotFound, match="no such model"):
        OIP.signature(channel, "nobody", 10)


@pytest.mark.parametrize("model", ["double", "typed"])
def test_answers_come_raw_or_typed(channel: grpc.Channel, model: str) -> None:
    answer = channel.unary_unary(OIP.method, None, None)(OIP.encode(model, {"x": X}, {}), timeout=PATIENCE_S)
    outputs = OIP.decode(answer)
    assert outputs["y"].dtype == np.float32
    np.testing.assert_array_equal(outputs["y"], X * 2)


def test_bytes_are_an_array_of_bytes(channel: grpc.Channel) -> None:
    answer = channel.unary_unary(OIP.method, None, None)(OIP.encode("bytes", {"x": X}, {}), timeout=PATIENCE_S)
    assert OIP.decode(answer)["y"].tolist() == [[b"2.0", b"5.0"]]


@pytest.mark.parametrize(
    ("array", "declared", "datatype", "data"),
    [
        (np.array([True]), "", b"BOOL", b"\1"),
        (np.array([-2], np.int8), "", b"INT8", b"\xfe"),
        (np.array([258], ">u2"), "", b"UINT16", b"\2\1"),
        (np.array([1], np.uint64), "", b"UINT64", b"\1" + bytes(7)),
        (np.array([1.0], np.float16), "", b"FP16", b"\0\x3c"),
        (np.array([1.0], np.float32), "bfloat16", b"BF16", b"\x80\x3f"),
        (np.array([1.0], np.float64), "", b"FP64", bytes(6) + b"\xf0\x3f"),
    ],
)
def test_tensors_go_out_raw(array: Array, declared: str, datatype: bytes, data: bytes) -> None:
    message = parse(OIP.encode("m", {"x": array}, {"x": declared}))
    assert message[1] == [b"m"]
    assert message[7] == [data]
    (given,) = message[5]
    assert isinstance(given, bytes)
    assert {1: [b"x"], 2: [datatype]}.items() <= parse(given).items()
    assert unpacked(parse(given)[3][0]) == [1]


def test_what_has_no_place_in_the_protocol() -> None:
    with pytest.raises(InvalidArgument, match="input 'x': dtype complex64 has no place in the protocol"):
        OIP.encode("m", {"x": np.zeros(1, np.complex64)}, {})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"\xff", "the answer is no ModelInferResponse"),
        (field(5, tensor("y", "FP32", [2])) + field(6, bytes(4)), r"has 4 bytes for float32 \[2\]"),
        (field(5, tensor("y", "FP32", [2])) + 2 * field(6, bytes(8)), "has 2 raw tensors for 1 output"),
        (field(5, tensor("y", "FP32", [2])), r"output 'y': 0 elements for shape \[2\]"),
        (field(5, tensor("y", "BYTES", [1])) + field(6, b"\5\0\0\0abc"), "output 'y': its last element is cut short"),
    ],
)
def test_broken_answers(answer: bytes, message: str) -> None:
    with pytest.raises(Internal, match=message):
        OIP.decode(answer)


def test_the_stubs_of_others_may_be_in_the_same_process() -> None:
    """In a process of its own, whose common pool they do not leave to other tests."""
    code = """if True:
        import opara_client.perf_oip
        from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
        from google.protobuf.descriptor_pool import Default

        for file in ("inference.proto", "grpc_service.proto"):
            name = "ModelInferRequest" if file == "inference.proto" else "ModelInferResponse"
            message = FileDescriptorProto(name=file, package="inference", message_type=[DescriptorProto(name=name)])
            Default().AddSerializedFile(message.SerializeToString())
            assert Default().FindMessageTypeByName(f"inference.{name}").fields == []
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=280)


def test_every_input_has_its_raw_entry() -> None:
    message = parse(OIP.encode("double", {"x": X, "z": X * 3}, {}))
    assert len(message[5]) == 2
    assert message[7] == [X.tobytes(), (X * 3).tobytes()]
