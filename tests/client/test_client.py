"""The synchronous client against a real server: answers, descriptions, typed errors, deadlines."""

from __future__ import annotations

import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from opara_client import (
    Cancelled,
    DeadlineExceeded,
    HealthStatus,
    InferRequest,
    Interval,
    InvalidArgument,
    ModelState,
    ModelStatus,
    NotFound,
    OparaClient,
    OparaError,
    ResourceExhausted,
    TensorSpec,
    Unavailable,
)
from opara_client.errors import error_for
from opara_client.tensors import Array
from opara_protos.v1 import inference_pb2 as pb
from tests.client.fake_server import NOT_SERVING, PATIENCE_S, FakeServer, Model

X = np.array([[1, 2], [3, 4]], np.float32)


def test_infer_answers_by_name(client: OparaClient) -> None:
    result = client.infer("double", {"x": X}, id="seven")
    np.testing.assert_array_equal(result["x"], X * 2)
    assert (result.model, result.id, list(result), len(result)) == ("double", "seven", ["x"], 1)
    assert dict(result).keys() == result.outputs.keys()


def test_only_wanted_outputs_come_back(server: FakeServer, client: OparaClient) -> None:
    server.models["two"] = Model({"x": pb.DATA_TYPE_FLOAT32, "y": pb.DATA_TYPE_INT8})
    inputs: dict[str, Array] = {"x": X, "y": np.array([1, 2], np.int8)}
    assert list(client.infer("two", inputs)) == ["x", "y"]
    assert list(client.infer("two", inputs, outputs=["y"])) == ["y"]


def test_bfloat16_is_float32_here_and_rounded(client: OparaClient) -> None:
    result = client.infer("echo-bfloat16", {"x": np.array([1 + 2**-8, 0.1], np.float32)})["x"]
    np.testing.assert_array_equal(result, np.array([1.0, 0.10009765625], np.float32))


@pytest.mark.parametrize(
    ("model", "array", "message"),
    [
        ("double", X.astype(np.float64), "input 'x': expected float32, got float64"),
        ("echo-int32", X, "input 'x': expected int32, got float32"),
        ("echo-bfloat16", X.astype(np.float16), r"expected bfloat16 \(bfloat16 is given as float32\), got float16"),
        ("double", np.array(["a"]), "input 'x': dtype str32 has no place in the protocol"),
    ],
)
def test_a_wrong_dtype_is_refused_before_it_is_sent(
    server: FakeServer,
    client: OparaClient,
    model: str,
    array: Array,
    message: str,
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        client.infer(model, {"x": array})
    assert server.seen.calls["Infer"] == 0


@pytest.mark.parametrize(("value", "kind"), [([[1.0, 2.0]], "list"), (1.0, "float"), (None, "NoneType")])
def test_what_is_no_array_is_not_made_one(server: FakeServer, client: OparaClient, value: Any, kind: str) -> None:
    message = f"^input 'x' must be a numpy array, got {kind}$"
    with pytest.raises(TypeError, match=message):
        client.infer("double", {"x": value})
    with pytest.raises(TypeError, match=message):
        list(client.infer_stream([InferRequest("double", {"x": value})]))
    assert (server.seen.calls["Infer"], server.seen.streamed) == (0, [])


def test_a_closed_client_says_so(server: FakeServer) -> None:
    client = OparaClient(server.target)
    client.close()
    for call in (lambda: client.infer("double", {"x": X}), client.models, lambda: next(client.infer_stream([]))):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_metadata_is_fetched_once_and_again_after_a_refusal(server: FakeServer, client: OparaClient) -> None:
    client.infer("double", {"x": X})
    client.infer("double", {"x": X})
    assert server.seen.calls["GetModel"] == 1
    server.models["double"] = Model({"x": pb.DATA_TYPE_INT16})
    with pytest.raises(InvalidArgument, match="refused by the server"):
        client.infer("double", {"x": X})
    with pytest.raises(InvalidArgument, match="expected int16, got float32"):
        client.infer("double", {"x": X})
    assert client.infer("double", {"x": X.astype(np.int16)})["x"].dtype == np.int16


def test_metadata_of_a_model_that_is_not_ready_is_not_kept(server: FakeServer, client: OparaClient) -> None:
    with pytest.raises(Unavailable, match="'loading' is loading"):
        client.infer("loading", {"x": X})
    server.models["loading"] = Model({"x": pb.DATA_TYPE_INT8})
    assert client.infer("loading", {"x": X.astype(np.int8)})["x"].dtype == np.int8


def test_a_profile_of_one_batch_size_or_of_all(client: OparaClient) -> None:
    assert [profile.batch_size for profile in client.profile("double")] == [1, 8]
    (profile,) = client.profile("double", 8)
    assert (profile.replays, profile.span_us, profile.concurrency, profile.omitted) == (10, 100.0, 1.5, 3)
    assert list(profile.stream_busy.items()) == [(0, 1.0), (1, 0.5)]
    assert list(profile.busy_us.items()) == [(0, 0.0), (1, 50.0), (2, 50.0)]
    assert profile.timeline == (Interval("conv", 1, 50.0, 100.0),)
    with pytest.raises(NotFound):
        client.profile("nobody")


def test_models_and_model(server: FakeServer, client: OparaClient) -> None:
    assert {status.name: status.state for status in client.models()}["loading"] is ModelState.LOADING
    server.models["bad"] = Model({}, pb.MODEL_STATE_FAILED, reason="it cannot be compiled")
    assert ModelStatus("bad", ModelState.FAILED, "it cannot be compiled") in client.models()
    assert client.model("bad").reason == "it cannot be compiled"
    model = client.model("double")
    assert (model.name, model.state, model.device, model.max_rows) == ("double", ModelState.READY, "cpu", 64)
    assert model.inputs == (TensorSpec("x", "float32", (-1, 2)),)
    assert (model.inputs[0].low, model.inputs[0].high) == (None, None)
    (bucket,) = model.buckets
    assert (bucket.batch_size, bucket.policy, bucket.streams, bucket.speedup, bucket.reused) == (
        8,
        "opara",
        4,
        1.5,
        True,
    )
    assert [candidate.policy for candidate in bucket.candidates] == ["sequential", "opara", "nimble", "wavefront"]
    assert [candidate.compact for candidate in bucket.candidates] == [False, True, False, False]
    assert bucket.compact
    assert bucket.candidates[2].rejected == "wrong in 1 of 100 replays"
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.name = "other"  # type: ignore[misc]


def test_a_range_may_begin_at_zero(server: FakeServer, client: OparaClient) -> None:
    server.models["table"] = Model({"x": pb.DATA_TYPE_INT32}, limits=(0, 7))
    assert client.model("table").inputs == (TensorSpec("x", "int32", (-1, 2), 0.0, 7.0),)


def test_health_of_the_server_and_of_a_model(server: FakeServer, client: OparaClient) -> None:
    server.health.set("double", NOT_SERVING)
    assert client.health() is HealthStatus.SERVING
    assert client.health("double") is HealthStatus.NOT_SERVING
    with pytest.raises(NotFound):
        client.health("nobody")


def test_an_unknown_model(client: OparaClient) -> None:
    with pytest.raises(NotFound, match="no model") as raised:
        client.infer("nobody", {"x": X})
    assert raised.value.code is grpc.StatusCode.NOT_FOUND
    assert raised.value.message == "no model\n'nobody'"
    with pytest.raises(NotFound):
        client.model("nobody")


def test_a_deadline_covers_the_whole_call_and_frees_the_server(server: FakeServer, client: OparaClient) -> None:
    client.infer("double", {"x": X})  # they are connected
    timeout = 0.5
    while not server.seen.entered.is_set():  # where it passes on the way there, another call has twice the time
        timeout *= 2
        with pytest.raises(DeadlineExceeded):
            client.infer("slow", {"x": X}, timeout=timeout)
    assert server.seen.left.wait(PATIENCE_S)


def test_closing_cancels_what_is_in_flight(server: FakeServer) -> None:
    client = OparaClient(server.target, timeout=PATIENCE_S)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.infer, "slow", {"x": X})
        assert server.seen.entered.wait(PATIENCE_S)
        client.close()
        with pytest.raises(Cancelled):
            answer.result(PATIENCE_S)
    assert server.seen.left.wait(PATIENCE_S)


def test_a_client_is_shared_between_threads(client: OparaClient) -> None:
    batches = [np.full((1, 2), n, np.float32) for n in range(100)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda batch: client.infer("double", {"x": batch})["x"], batches))
    for batch, result in zip(batches, results, strict=True):
        np.testing.assert_array_equal(result, batch * 2)


def test_nobody_listens() -> None:
    with OparaClient("127.0.0.1:1", timeout=PATIENCE_S) as client, pytest.raises(Unavailable):
        client.models()


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_code_has_its_error(code: grpc.StatusCode) -> None:
    error = error_for(code.value[0], "why")
    assert type(error) is type(error_for(code, "why"))
    assert (error.code, error.message, str(error)) == (code, "why", f"{code.name}: why")
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), copied.code, str(copied)) == (type(error), code, str(error))


def test_codes_are_typed_and_unknown_ones_are_plain() -> None:
    assert type(error_for(8, "")) is ResourceExhausted
    assert type(error_for(11, "")) is OparaError
    assert error_for(99, "").code is grpc.StatusCode.UNKNOWN


def test_inputs_are_a_mapping(client: OparaClient) -> None:
    array: Any = np.zeros((1, 2), np.float32)
    with pytest.raises(TypeError, match=r"inputs must map names to arrays: \{name: array\}, not ndarray"):
        client.infer("double", array)
