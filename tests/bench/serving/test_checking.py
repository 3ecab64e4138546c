"""What makes a measurement invalid."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from bench.serving.checking import counted, loaded, request_codes, sampled
from bench.serving.h2load import Report
from bench.serving.payloads import PAYLOADS
from bench.serving.protocols import Echo, OparaV1, OpenInference
from opara_protos.v1 import inference_pb2 as pb

GOOD = Report(1000.0, done=100, ok=100, bad=0, data_bytes=100 * 95)


def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_every_answer_with_all_of_its_bytes_is_valid() -> None:
    assert loaded(GOOD, 95, callers=1) == []


def test_answers_under_way_at_the_end_may_have_come_in_part() -> None:
    assert loaded(Report(1000.0, 100, 103, 0, 100 * 95 + 130), 95, callers=8) == []


@pytest.mark.parametrize(
    "report",
    [
        Report(1000.0, 100, 100, 0, 99 * 95),  # one call failed: HTTP 200, no data
        Report(1000.0, 100, 99, 0, 100 * 95),
        Report(1000.0, 100, 100, 1, 100 * 95),
        Report(1000.0, 100, 100, 0, 110 * 95),  # what answers is something else
        Report(0.0, 0, 0, 0, 0),
    ],
)
def test_anything_else_is_not(report: Report) -> None:
    assert loaded(report, 95, callers=8)


def test_right_samples_have_no_problems_and_differ_from_each_other() -> None:
    seen = set()

    def echo(message: bytes) -> bytes:
        seen.add(message)
        return message

    assert sampled(echo, Echo(), PAYLOADS["mlp"], random(), 3) == []
    assert len(seen) == 3


def test_a_model_is_compared_with_its_module() -> None:
    payload = PAYLOADS["mlp"]

    def serve(message: bytes, error: float = 0.0) -> bytes:
        [tensor] = pb.InferRequest.FromString(message).inputs
        y = payload.answer(np.frombuffer(tensor.data, np.float32).reshape(tensor.shape).copy()) + np.float32(error)
        answer = pb.Tensor(name="y", data_type=pb.DATA_TYPE_FLOAT32, shape=y.shape, data=y.tobytes())
        return pb.InferResponse(outputs=[answer]).SerializeToString()

    assert sampled(serve, OparaV1(), payload, random(), 1) == []
    assert (
        sampled(lambda message: serve(message, 1e-3), OparaV1(), payload, random(), 2)
        == ["a sampled answer is wrong"] * 2
    )


def test_what_is_no_answer_is_a_problem() -> None:
    [problem] = sampled(lambda _: b"\xff", OpenInference(), PAYLOADS["tiny"], random(), 1)
    assert problem.startswith("a sampled answer is none")
    [problem] = sampled(lambda message: message[:-1], OparaV1(), PAYLOADS["tiny"], random(), 1)
    assert problem.startswith("a sampled answer")


class Refused(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_failed_call_is_a_problem_with_its_code() -> None:
    def refuse(_: bytes) -> bytes:
        raise Refused

    assert sampled(refuse, Echo(), PAYLOADS["tiny"], random(), 1) == ["a sampled call failed: RESOURCE_EXHAUSTED"]


EXPOSITION = """\
# HELP opara_requests_total Requests by the gRPC code of their answer.
# TYPE opara_requests_total counter
opara_requests_total{code="OK",model="tiny"} 1.2e+03
opara_requests_total{code="CANCELLED",model="tiny"} 7.0
opara_requests_total{code="OK",model="mlp"} 5.0
opara_request_seconds_count{model="tiny"} 9.0
"""


def test_the_servers_counts_are_read_for_one_model() -> None:
    assert request_codes(EXPOSITION, "tiny") == {"OK": 1200, "CANCELLED": 7}
    assert request_codes(EXPOSITION.replace('code="OK",model="mlp"', 'model="mlp",code="OK"'), "mlp") == {"OK": 5}


def test_counts_agree_where_every_answer_was_ok() -> None:
    assert counted({"OK": 10}, {"OK": 115, "CANCELLED": 8}, done=100, callers=8) == []


@pytest.mark.parametrize("after", [{"OK": 109}, {"OK": 127}, {"OK": 110, "RESOURCE_EXHAUSTED": 1}, {}])
def test_counts_disagree(after: dict[str, float]) -> None:
    assert counted({"OK": 10}, after, done=100, callers=8)
