"""A server whose folder of models holds one that is good, and every kind of one that is not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest

from opara_protos.v1 import inference_pb2 as pb
from opara_protos.v1.inference_pb2_grpc import InferenceServiceStub
from tests.e2e.conftest import SMALL_TOML, write_model
from tests.e2e.server_process import PATIENCE_S, running
from tests.e2e.test_lifecycle import request

SETTINGS, SOURCE = "its name or its model.toml cannot be used", "its source or its weights cannot be used"
BAD = {  # what is in model.toml, what the log says, and what everybody is told
    "a model": (SMALL_TOML, "a model's name may have letters", SETTINGS),
    "syntax": ("source = = 3", "model.toml: Invalid value (at line 1, column 10)", SETTINGS),
    "unknown_key": (f"speed = 3\n{SMALL_TOML}", "model.toml: unknown key 'speed'", SETTINGS),
    "no_module": (SMALL_TOML.replace("tests.e2e.nets", "nowhere"), "no module named 'nowhere'", SOURCE),
    "no_function": (SMALL_TOML.replace(":Small", ":at_all"), "has no function 'at_all'", SOURCE),
    "no_weights": (f'weights = "w.safetensors"\n{SMALL_TOML}', "w.safetensors: no such file", SOURCE),
    "ends_it": (SMALL_TOML.replace("tests.e2e.nets:Small", "sys:exit"), "SystemExit", SOURCE),
}


@pytest.mark.parametrize("workers", [0, 1])
def test_the_good_one_serves_and_each_bad_one_is_told_once(small: Path, workers: int) -> None:
    for name, (toml, _, _) in BAD.items():
        write_model(small, name, toml)
    (small / "versions" / "1").mkdir(parents=True)
    (small / "small" / "version one").mkdir()
    with running(small, f"--workers={workers}", "--log-format=json") as server:
        with urlopen(f"http://{server.metrics}/status.json", timeout=PATIENCE_S) as page:
            shown = {model["name"]: (model["state"], model["reason"]) for model in json.load(page)["models"]}
        with grpc.insecure_channel(server.grpc) as channel:
            stub = InferenceServiceStub(channel)
            assert stub.Infer(request(1.0), timeout=PATIENCE_S).outputs
            listed = stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S).models
            told = {stub.GetModel(pb.GetModelRequest(model=name), timeout=PATIENCE_S).status.reason for name in BAD}
        assert {model.name: model.reason for model in listed if model.state == pb.MODEL_STATE_FAILED} == {
            name: told for name, (_, _, told) in BAD.items()
        }
        assert [(model.name, model.reason) for model in listed if model.name not in BAD] == [("small", "")]
        assert told == {SETTINGS, SOURCE}
        ready = [server.sample(f'opara_model_ready{{model="{name}"}}') for name in ("small", *BAD)]
        assert server.stop() == 0
    assert shown == {"small": ("READY", "")} | {name: ("FAILED", told) for name, (_, _, told) in BAD.items()}
    assert ready == [1] + [0] * len(BAD)
    log = [json.loads(line) for line in (small.parent / "server.log").read_text().splitlines()]
    failures = {line["model"]: line["message"] for line in log if "failed to load" in line["message"]}
    assert Counter(line["level"] for line in log)["error"] == len(failures) == len(BAD)
    for name, (_, says, _) in BAD.items():
        assert says in failures[name]
    assert [line["folders"] for line in log if "folders" in line] == [["versions"]]
