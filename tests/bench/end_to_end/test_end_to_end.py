"""What is asked, what bounds it, and what a plain server answers, on the CPU. No load is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.end_to_end import bare, loads
from bench.end_to_end.__main__ import _started
from bench.end_to_end.plain import Handler
from bench.end_to_end.servers import Server, opara
from bench.end_to_end.tables import report
from bench.end_to_end.workloads import Workload, make_repository
from bench.serving.process import Launch, Place
from opara_client.perf_opara import OparaProtocol
from opara_protos.v1 import inference_pb2 as pb
from opara_server.serving.repository import Entry
from opara_server.version import VERSION

DEEPFM = Workload("deepfm", "float32", 2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_repository(folder, DEEPFM, "cpu", 0.5)
    return folder


def test_requests_are_what_the_model_takes() -> None:
    request = pb.InferRequest.FromString(DEEPFM.request(3))
    (tensor,) = request.inputs
    assert (request.model, tensor.name, tuple(tensor.shape)) == ("deepfm", "ids", (2, 26))
    values = np.frombuffer(tensor.data, np.int64)
    assert values.min() >= 0
    assert values.max() < 10_000
    assert DEEPFM.request(3) == DEEPFM.request(3) != DEEPFM.request(4)
    assert DEEPFM.input_bytes == len(tensor.data)


def test_a_plain_server_answers_as_the_module_does(models: Path) -> None:
    entry = Entry("deepfm", models / "deepfm")
    module = entry.module(entry.config())
    handler = Handler(lambda inputs: [module(*inputs)], ("ids",), torch.contiguous_format, torch.device("cpu"))
    message = DEEPFM.request(1)
    (found,) = OparaProtocol().decode(handler.answer(message)).values()
    ids = np.frombuffer(pb.InferRequest.FromString(message).inputs[0].data, np.int64).reshape(2, 26)
    with torch.inference_mode():
        np.testing.assert_allclose(found, module(torch.from_numpy(ids.copy())).numpy(), rtol=1e-6)


def test_our_server_is_found_from_wherever_it_is_started(tmp_path: Path) -> None:
    launch = opara("--workers=2").launch(Place(1, 2, 3, tmp_path), tmp_path, tmp_path, DEEPFM)
    code = [*launch.argv[:2], "opara_server.cli", "--version"]
    found = subprocess.run(code, env=dict(launch.environment), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.split()[-1] == VERSION
    assert launch.argv[-1] == "--workers=2"


def test_without_one_of_ours_nothing_is_measured(tmp_path: Path) -> None:
    def failing(*_: object) -> Launch:
        return Launch((sys.executable, "-c", "raise SystemExit('no such GPU')"), ready="READY")

    others = [Server("another", failing), Server("ours", failing, ours=True)]
    with ExitStack() as stack, pytest.raises(SystemExit, match=r"(?s)ours does not start.*no such GPU"):
        _started(others, DEEPFM, tmp_path, tmp_path, sorted(os.sched_getaffinity(0)), (), 60.0, stack)


def test_bounds_are_measured(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare.main(models, tmp_path, "deepfm", rows=2, seconds=0.5, lanes=[1, 2])
    found = json.loads(capsys.readouterr().out)
    for one in found["buckets"].values():
        assert 0 < one["replay_us"] <= one["alone_us"]
        assert one["rows_per_s"] > 0
        assert min(one["straight_us"], one["beside_us"]) > 0
    for memory in ("lanes", "pinned"):
        assert {count: one["rows_per_s"] > 0 for count, one in found[memory].items()} == {"1": True, "2": True}


def test_lanes_are_those_asked_for(models: Path, tmp_path: Path) -> None:
    make_repository(tmp_path, DEEPFM, "cpu", 0.5, lanes=2)
    assert Entry("deepfm", tmp_path / "deepfm").config().batching.lanes == 2
    assert Entry("deepfm", models / "deepfm").config().batching.lanes == "auto"


def test_errors_are_of_the_worst_answer() -> None:
    expected = [[np.array([3.0, 4.0])], [np.array([1.0])]]
    found = [[np.array([3.0, 4.5])], [np.array([1.25])]]
    assert loads.worst_error(found, expected) == pytest.approx(0.25)


def test_the_report_has_medians_and_what_they_are_of_the_bounds() -> None:
    bucket = {"alone_us": 200.0, "copy_in_us": 20.0, "replay_us": 150.0, "copy_out_us": 10.0, "rows_per_s": 4000.0}
    bucket |= {"straight_us": 150.0, "beside_us": 160.0}
    rates = [{"requests_per_s": r, "rows_per_s": r, "idle_over_replay": 0.08} for r in (3000.0, 3400.0, 9000.0)]
    rates = [one | {"cores": n + 0.5, "cores_of_busiest": n} for n, one in enumerate(rates, 1)]
    times = [{"p50_us": us, "p99_us": us + 100, "h2load_p50_us": us - 90} for us in (500.0, 520.0, 900.0)]
    bounds, limits = [{"p50_us": 250.0, "p99_us": 300.0}], [{"requests_per_s": 3500.0, "rows_per_s": 3500.0}]
    poisson = [{"rate": 2000.0, "p50_us": 400.0, "p99_us": 1000.0, "failed": 0, "held": 3, "generator_busy": 0.25}]
    poisson += [{"rate": 9000.0, "p50_us": 0.0, "p99_us": 0.0, "failed": 17, "held": 0, "generator_busy": 0.5}]
    found = {
        "environment": {"gpu": "none"},
        "settings": {"rounds": 3},
        "cores": {"server": 2, "generator": 2},
        "workloads": {
            "deepfm float32, 1 row a request": {
                "error": {"opara-serve": 0.001, "plain": None},
                "one caller": {"opara-serve": times, "plain": [], "no model, 2 processes": bounds},
                "saturated": {"opara-serve": rates, "plain": [], "no model, 2 processes": limits},
                "open loop": {"opara-serve": poisson},
                "bare": {
                    "buckets": {"1": bucket},
                    "lanes": {"2": {"rows_per_s": 3200.0, "idle_over_replay": 0.23}},
                    "pinned": {"2": {"rows_per_s": 3900.0, "idle_over_replay": 0.03}},
                },
            }
        },
    }
    text = report(found)
    assert "| opara-serve | 520 | 620 | 320 | 70 | 430 | 3,400 | 3,400 | 85% | 97% | 8% | 2.5, 2.0 | 1e-03 |" in text
    assert "| no model, 2 processes | 250 | 300 | – | – | – | 3,500 | 3,500 | 88% | 100% | – | – | – |" in text
    assert "| 2 | 3,200 | 80% | 23% | 3,900 | 98% | 3% |" in text
    assert "| 2,000 | 400 | 1,000 | 2.5 | 0 | 3 | 25% |" in text
    assert "| 9,000 | – | – | – | 17 | 0 | 50% |" in text
    assert "Of 160 µs that a batch of 1 has" in text
    assert "10 µs (6.2%) are copies" in text
    assert "| plain | – |" in text
