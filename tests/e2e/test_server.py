"""A running server as its operators and tools see it."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from opara_client import InvalidArgument, OparaClient
from opara_protos.v1 import inference_pb2 as pb
from opara_protos.v1.inference_pb2_grpc import InferenceServiceStub
from tests.e2e.nets import WIDTH
from tests.e2e.server_process import PATIENCE_S, ServerProcess

SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3


@pytest.mark.parametrize(
    ("name", "status"),
    [("", SERVING), ("opara.v1.InferenceService", SERVING), ("branches", SERVING), ("broken", NOT_SERVING)],
)
def test_health_overall_and_per_model(channel: grpc.Channel, name: str, status: int) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    asked = health_pb2.HealthCheckRequest(service=name)
    assert stub.Check(asked, timeout=PATIENCE_S).status == status
    watching = stub.Watch(asked, timeout=PATIENCE_S)
    assert next(watching).status == status
    watching.cancel()


def test_health_of_a_name_that_is_not_there(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    asked = health_pb2.HealthCheckRequest(service="nobody")
    with pytest.raises(grpc.RpcError, match="no model or service 'nobody'") as caught:
        stub.Check(asked, timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watching = stub.Watch(asked, timeout=PATIENCE_S)
    assert next(watching).status == UNKNOWN
    watching.cancel()


def test_reflection_lists_the_services_and_describes_them(channel: grpc.Channel) -> None:
    database: Any = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) == {
        "opara.v1.InferenceService",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    service = DescriptorPool(database).FindServiceByName("opara.v1.InferenceService")
    assert [method.name for method in service.methods] == [
        "Infer",
        "InferStream",
        "ListModels",
        "GetModel",
        "ProfileModel",
    ]
    oip = DescriptorPool(database).FindServiceByName("inference.GRPCInferenceService")
    infer = oip.FindMethodByName("ModelInfer")
    assert infer.input_type.fields_by_name["raw_input_contents"].number == 7
    for name in database.get_services():
        assert DescriptorPool(database).FindServiceByName(name).methods


def test_the_model_and_the_plan_that_runs_it(channel: grpc.Channel) -> None:
    model = InferenceServiceStub(channel).GetModel(pb.GetModelRequest(model="branches"), timeout=PATIENCE_S)
    assert (model.status.state, model.device, model.max_rows) == (pb.MODEL_STATE_READY, "cpu", 16)
    assert [(i.name, list(i.shape)) for i in model.inputs] == [("x", [-1, WIDTH]), ("tokens", [-1, 3])]
    assert [(o.name, list(o.shape)) for o in model.outputs] == [("features", [-1, 32]), ("positive", [-1])]
    assert [bucket.batch_size for bucket in model.buckets] == [1, 4]
    for bucket in model.buckets:
        policies = {candidate.policy for candidate in bucket.candidates}
        assert {"sequential", "opara", bucket.policy} <= policies
        assert bucket.operators > 5
        assert 0 < bucket.measured_us <= bucket.sequential_us


def test_our_client_and_the_server_understand_each_other(server: ServerProcess) -> None:
    inputs: dict[str, np.ndarray] = {"x": np.ones((3, WIDTH), np.float32), "tokens": np.arange(9).reshape(3, 3)}
    with OparaClient(server.grpc, timeout=PATIENCE_S) as client:
        outputs = client.infer("branches", inputs)
        assert outputs["features"].shape == (3, 32)
        assert outputs["positive"].dtype == np.bool_
        with pytest.raises(InvalidArgument, match="missing input: 'tokens'"):
            client.infer("branches", {"x": inputs["x"]})


def test_metrics_count_what_happened(server: ServerProcess, channel: grpc.Channel) -> None:
    stub = InferenceServiceStub(channel)
    counts = {
        'opara_requests_total{code="OK",model="branches"}': 1.0,
        'opara_requests_total{code="INVALID_ARGUMENT",model="branches"}': 1.0,
        'opara_requests_total{code="NOT_FOUND",model="(unknown)"}': 1.0,
        'opara_request_seconds_count{model="branches"}': 1.0,
        'opara_rows_total{model="branches"}': 3.0,
        'opara_padded_rows_total{model="branches"}': 1.0,
        'opara_batches_total{model="branches"}': 1.0,
        'opara_replay_seconds_count{bucket="4",model="branches"}': 1.0,
    }
    before = {line: server.sample(line) for line in counts}
    tensors = [
        pb.Tensor(name="x", data_type=pb.DATA_TYPE_FLOAT32, shape=(3, WIDTH), data=bytes(12 * WIDTH)),
        pb.Tensor(name="tokens", data_type=pb.DATA_TYPE_INT64, shape=(3, 3), data=bytes(72)),
    ]
    stub.Infer(pb.InferRequest(model="branches", inputs=tensors), timeout=PATIENCE_S)
    for model in ("branches", "nobody"):
        with pytest.raises(grpc.RpcError):
            stub.Infer(pb.InferRequest(model=model), timeout=PATIENCE_S)
    after = {line: server.sample(line) for line in counts}
    assert {line: after[line] - before[line] for line in counts} == counts
    assert server.sample('opara_model_ready{model="branches"}') == 1
    assert server.sample('opara_model_ready{model="broken"}') == 0
