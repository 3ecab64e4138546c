"""A real server on the GPU: concurrent requests, every answer compared with eager."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from opara_client import HealthStatus, Internal, OparaClient, Unavailable
from tests.e2e.server_process import PATIENCE_S, running
from tests.gpu.nets import googlenet

GOOGLENET = """
source = "python:tests.gpu.nets:googlenet"
batch_sizes = [1, 4, 8]
tuning_budget_s = 40
dtype = "float16"
device = "cuda"
channels_last = true

[[inputs]]
name = "image"
dtype = "float16"
shape = [3, 224, 224]
"""
REQUESTS = 300


def test_concurrent_requests_to_googlenet_are_answered_as_eager_would(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    folder = tmp_path / "models" / "googlenet"
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(GOOGLENET)
    module = googlenet().cuda()  # in float32: eager's answers in float16 are as wrong as the server's
    random = np.random.default_rng(0)
    images = [random.standard_normal((1 + i % 3, 3, 224, 224)).astype(np.float16) for i in range(REQUESTS)]
    with running(tmp_path / "models") as server, OparaClient(server.grpc) as client:
        model = client.model("googlenet")
        assert model.device == "cuda"
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda image: client.infer("googlenet", {"image": image}), images))
        assert server.sample('opara_stream_concurrency{bucket="1",model="googlenet"}') > 0
        assert server.stop() == 0
    for image, answer in zip(images, answers, strict=True):
        with torch.inference_mode():
            expected = module(torch.from_numpy(image).cuda().float()).cpu().numpy()
        (logits,) = answer.outputs.values()
        assert np.linalg.norm(logits.astype(np.float32) - expected) <= 3e-2 * np.linalg.norm(expected)


LOOKS = """
source = "python:tests.gpu.nets:Looks"
batch_sizes = [2]
device = "cuda"

[[inputs]]
name = "x"
dtype = "float32"
shape = [3]
"""


def test_a_lost_gpu_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "looks"
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(LOOKS)
    with running(tmp_path / "models") as server, OparaClient(server.grpc) as client:
        assert client.health("looks") == HealthStatus.SERVING
        client.infer("looks", {"x": np.ones((1, 3), np.float32)})
        with pytest.raises(Internal):  # a device-side assertion: nothing of this process can use the GPU any more
            client.infer("looks", {"x": np.full((1, 3), 1e6, np.float32)})
        end = time.monotonic() + PATIENCE_S  # the failed request is answered first, the device is looked at then
        while client.health("looks") == HealthStatus.SERVING and time.monotonic() < end:
            time.sleep(0.05)
        assert client.health() == client.health("looks") == HealthStatus.NOT_SERVING
        with pytest.raises(Unavailable):
            client.infer("looks", {"x": np.ones((1, 3), np.float32)}, timeout=5.0)
