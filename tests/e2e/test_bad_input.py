"""Everything that a client may get wrong: the right status, the server still serves, and the next answer is right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import grpc
import numpy as np
import pytest
import torch

from opara_protos.v1 import inference_pb2 as pb
from opara_protos.v1.inference_pb2_grpc import InferenceServiceStub
from tests.e2e.nets import TOKENS, WIDTH, Branches
from tests.e2e.server_process import PATIENCE_S, ServerProcess

INFER = "/opara.v1.InferenceService/Infer"
MODEL = "branches"
RNG = np.random.default_rng(7)


def x_tensor(rows: int = 2, **changes: Any) -> pb.Tensor:
    data = RNG.standard_normal((rows, WIDTH), dtype=np.float32).tobytes()
    fields: dict[str, Any] = {"name": "x", "data_type": pb.DATA_TYPE_FLOAT32, "shape": (rows, WIDTH), "data": data}
    return pb.Tensor(**(fields | changes))


def tokens_tensor(rows: int = 2, **changes: Any) -> pb.Tensor:
    data = RNG.integers(0, TOKENS, (rows, 3)).tobytes()
    fields: dict[str, Any] = {"name": "tokens", "data_type": pb.DATA_TYPE_INT64, "shape": (rows, 3), "data": data}
    return pb.Tensor(**(fields | changes))


def request(*inputs: pb.Tensor, **fields: Any) -> pb.InferRequest:
    return pb.InferRequest(model=fields.pop("model", MODEL), inputs=inputs, **fields)


def good(rows: int = 2) -> pb.InferRequest:
    return request(x_tensor(rows), tokens_tensor(rows))


def arrays(tensors: Any) -> dict[str, np.ndarray]:
    kinds = {pb.DATA_TYPE_FLOAT32: np.float32, pb.DATA_TYPE_INT64: np.int64, pb.DATA_TYPE_BOOL: np.bool_}
    return {t.name: np.frombuffer(t.data, kinds[t.data_type]).reshape(tuple(t.shape)) for t in tensors}


def assert_right(branches: Branches, asked: pb.InferRequest, response: pb.InferResponse) -> None:
    """As the eager model answers; where that is NaN, NaN."""
    inputs, outputs = arrays(asked.inputs), arrays(response.outputs)
    with torch.inference_mode():
        expected = branches(torch.tensor(inputs["x"]), torch.tensor(inputs["tokens"]))
    np.testing.assert_allclose(outputs["features"], expected["features"].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(outputs["positive"], expected["positive"].numpy())


@pytest.fixture
def stub(channel: grpc.Channel, branches: Branches) -> Iterator[InferenceServiceStub]:
    """After the test the server still serves, and its next answer is right."""
    stub = InferenceServiceStub(channel)
    yield stub
    asked = good()
    assert_right(branches, asked, stub.Infer(asked, timeout=PATIENCE_S))


def refused(stub: InferenceServiceStub, asked: pb.InferRequest, **options: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Infer(asked, timeout=options.pop("timeout", PATIENCE_S), **options)
    error = cast("grpc.Call", caught.value)
    return error.code().name, error.details()


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 16])
def test_good_requests_of_every_size(stub: InferenceServiceStub, branches: Branches, rows: int) -> None:
    asked = good(rows)
    assert_right(branches, asked, stub.Infer(asked, timeout=PATIENCE_S))


@pytest.mark.parametrize(
    "message", [b"\xff", b"\x0a\xff", b"not a message at all", bytes([0x1A, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F])]
)
def test_undecodable_bytes(stub: InferenceServiceStub, channel: grpc.Channel, message: bytes) -> None:
    send: Any = channel.unary_unary(INFER, None, None)
    with pytest.raises(grpc.RpcError) as caught:
        send(message, timeout=PATIENCE_S)
    error = cast("grpc.Call", caught.value)
    assert (error.code().name, error.details()) == ("INVALID_ARGUMENT", "the bytes are no opara.v1.InferRequest")


BAD: dict[str, tuple[Any, dict[str, Any], str, str]] = {  # inputs, the request's other fields, code, text
    "unknown model": (good().inputs, {"model": "nobody"}, "NOT_FOUND", "no model 'nobody'"),
    "failed model": (good().inputs, {"model": "broken"}, "UNAVAILABLE", "model 'broken' is not ready"),
    "missing input": ([x_tensor()], {}, "INVALID_ARGUMENT", "missing input: 'tokens'"),
    "extra input": ([*good().inputs, x_tensor(name="y")], {}, "INVALID_ARGUMENT", "unknown input 'y'"),
    "duplicate input": ([*good().inputs, x_tensor()], {}, "INVALID_ARGUMENT", "input 'x' came more than once"),
    "unknown output": (good().inputs, {"outputs": ["z"]}, "INVALID_ARGUMENT", "unknown output 'z'"),
    "wrong data type": (
        [x_tensor(data_type=pb.DATA_TYPE_INT32), tokens_tensor()],
        {},
        "INVALID_ARGUMENT",
        "input 'x': expected float32, got int32",
    ),
    "wrong rank": (
        [x_tensor(shape=(2, 4, 4)), tokens_tensor()],
        {},
        "INVALID_ARGUMENT",
        "input 'x': expected shape [rows, 16], got [2, 4, 4]",
    ),
    "wrong shape": (
        [x_tensor(shape=(4, 8)), tokens_tensor()],
        {},
        "INVALID_ARGUMENT",
        "input 'x': expected shape [rows, 16], got [4, 8]",
    ),
    "data too short": (
        [x_tensor(data=bytes(127)), tokens_tensor()],
        {},
        "INVALID_ARGUMENT",
        "input 'x': expected 128 bytes of data (32 x float32), got 127",
    ),
    "data too long": (
        [x_tensor(data=bytes(132)), tokens_tensor()],
        {},
        "INVALID_ARGUMENT",
        "input 'x': expected 128 bytes of data (32 x float32), got 132",
    ),
    "zero rows": ([x_tensor(0), tokens_tensor(0)], {}, "INVALID_ARGUMENT", "input 'x': expected 1 to 16 rows, got 0"),
    "too many rows": (
        [x_tensor(17), tokens_tensor(17)],
        {},
        "INVALID_ARGUMENT",
        "input 'x': expected 1 to 16 rows, got 17",
    ),
    "different rows": (
        [x_tensor(2), tokens_tensor(3)],
        {},
        "INVALID_ARGUMENT",
        "input 'tokens' has 3 rows, but input 'x' has 2",
    ),
    "sizes that overflow int64": (
        [x_tensor(shape=(2**62, 16), data=b""), tokens_tensor()],
        {},
        "INVALID_ARGUMENT",
        f"input 'x': expected 1 to 16 rows, got {2**62}",
    ),
    "negative sizes": (
        [x_tensor(shape=(-2, -16)), tokens_tensor()],
        {},
        "INVALID_ARGUMENT",
        "input 'x': expected shape [rows, 16], got [-2, -16]",
    ),
    "an index outside the table": (
        [x_tensor(), tokens_tensor(data=np.full((2, 3), TOKENS).tobytes())],
        {},
        "INVALID_ARGUMENT",
        "input 'tokens' has values outside [0, 32)",
    ),
    "a message over the limit": (
        [x_tensor(data=bytes(2_000_000)), tokens_tensor()],
        {},
        "RESOURCE_EXHAUSTED",
        "",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests(stub: InferenceServiceStub, case: str) -> None:
    inputs, fields, code, says = BAD[case]
    got, text = refused(stub, request(*inputs, **fields))
    assert got == code
    assert says in text
    assert len(text) < 300


def test_a_deadline_in_the_past(stub: InferenceServiceStub) -> None:
    assert refused(stub, good(), timeout=-1.0)[0] == "DEADLINE_EXCEEDED"


def test_a_deadline_that_has_passed_when_the_server_reads_it(stub: InferenceServiceStub, server: ServerProcess) -> None:
    executed = server.sample('opara_rows_total{model="branches"}')
    late = pb.InferStreamRequest(request=good(), timeout_us=1)
    (answer,) = stub.InferStream(iter([late]), timeout=PATIENCE_S)
    assert answer.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert server.sample('opara_rows_total{model="branches"}') == executed


def test_errors_in_the_middle_of_a_stream(stub: InferenceServiceStub, branches: Branches) -> None:
    asked = {str(number): good(1 + number % 4) for number in range(100)}
    for number in range(0, 100, 7):
        asked[str(number)].inputs[0].shape[0] += 1
    for name, one in asked.items():
        one.id = name
    requests = (pb.InferStreamRequest(request=one) for one in asked.values())
    answers = {answer.id: answer for answer in stub.InferStream(requests, timeout=PATIENCE_S)}
    assert answers.keys() == asked.keys()
    for name, answer in answers.items():
        if int(name) % 7 == 0:
            assert answer.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        else:
            assert_right(branches, asked[name], answer.response)


def test_clients_that_are_gone_in_mid_request(stub: InferenceServiceStub, server: ServerProcess) -> None:
    for _ in range(20):
        with grpc.insecure_channel(server.grpc) as passing:
            gone = InferenceServiceStub(passing)
            calls = [gone.Infer.future(good(16), timeout=PATIENCE_S) for _ in range(10)]
            for call in calls[::2]:
                call.cancel()  # type: ignore[no-untyped-call]
    server.wait_for('opara_queue_depth_rows{model="branches"}', 0.0)
    assert server.process.poll() is None


def test_not_a_number_next_to_good_rows(stub: InferenceServiceStub, branches: Branches) -> None:
    """In one request, and in requests that may share its batch."""
    x = RNG.standard_normal((4, WIDTH), dtype=np.float32)
    x[1], x[2] = np.nan, np.inf
    bad = request(x_tensor(4, data=x.tobytes()), tokens_tensor(4))
    asked = [good(1), bad, good(3), bad, good(2), bad, good(1)]
    calls = [stub.Infer.future(one, timeout=PATIENCE_S) for one in asked]
    for one, call in zip(asked, calls, strict=True):
        assert_right(branches, one, call.result())
