"""What the server knows of a model comes out whole."""

from __future__ import annotations

from dataclasses import fields, replace

from opara_protos.v1 import inference_pb2 as pb
from opara_server.engine.plan import BucketPlan, Candidate, Plan
from opara_server.engine.spec import TensorSpec
from opara_server.rpc.describe import model_message
from opara_server.serving.registry import ModelDescription, ModelState

CANDIDATE = Candidate("aten", "opara", True, 4, 7, 90.0, 100.0, 1024, "too much memory", 101.5)
BUCKET = BucketPlan(8, "nimble", True, "aten", 42, 3, 9, 50.0, 5, 6, 80.0, 120.0, 2048, (CANDIDATE,), True)
NOT_SENT = {"width", "depth", "longest_path_us"}  # of the graph
MODEL = ModelDescription(
    "m",
    ModelState.READY,
    inputs=(TensorSpec("tokens", "int64", (3,), 0.0, 32.0), TensorSpec("x", "float32", ())),
    plan=Plan("m", "cpu", "a processor", (BUCKET,), "why"),
)


def test_a_plan_keeps_every_value() -> None:
    (bucket,) = model_message(MODEL).buckets
    for kind, sent, known in ((BucketPlan, bucket, BUCKET), (Candidate, bucket.candidates[0], CANDIDATE)):
        for name in {field.name for field in fields(kind)} - NOT_SENT - {"candidates"}:
            assert getattr(sent, name) == getattr(known, name), name


def test_an_input_has_its_range_or_none() -> None:
    tokens, x = model_message(MODEL).inputs
    assert tokens == pb.TensorSpec(name="tokens", data_type=pb.DATA_TYPE_INT64, shape=(-1, 3), low=0.0, high=32.0)
    assert tokens.HasField("low")
    assert not x.HasField("low")
    assert not x.HasField("high")


def test_a_model_that_loads_has_no_plan() -> None:
    message = model_message(replace(MODEL, state=ModelState.LOADING, plan=None))
    assert message.status.state == pb.MODEL_STATE_LOADING
    assert (message.device, len(message.buckets)) == ("", 0)
