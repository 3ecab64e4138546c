"""A kubelet that asks as the manifests say does not restart a server whose interpreter is busy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from opara_protos.v1 import inference_pb2 as pb
from opara_protos.v1.inference_pb2_grpc import InferenceServiceStub
from tests.deploy.manifests import built, container_of, one
from tests.e2e.conftest import SMALL_TOML, write_model
from tests.e2e.server_process import PATIENCE_S, ServerProcess, running

LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
LATER = b"\x12\x05later"  # model_name = 2
SERVING = 1
PROBE = container_of(one(built("cpu"), "Deployment"))["livenessProbe"]


@contextmanager
def connection(server: ServerProcess) -> Iterator[grpc.Channel]:
    """Of its own, as each of a kubelet's."""
    with grpc.insecure_channel(server.grpc, (("grpc.use_local_subchannel_pool", 1),)) as channel:
        yield channel


def alive(server: ServerProcess, timeout_s: float = PROBE["timeoutSeconds"]) -> bool:
    """What one probe finds."""
    with connection(server) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        try:
            return bool(check(health_pb2.HealthCheckRequest(), timeout=timeout_s).status == SERVING)
        except grpc.RpcError:
            return False


def lives(server: ServerProcess) -> bool:
    """What a kubelet finds, who asks as often as the manifests say."""
    return any(alive(server) for _ in range(PROBE["failureThreshold"]))


def infers(server: ServerProcess, timeout_s: float) -> bool:
    tensor = pb.Tensor(name="x", data_type=pb.DATA_TYPE_FLOAT32, shape=(1, 4), data=bytes(16))
    with connection(server) as channel:
        try:
            InferenceServiceStub(channel).Infer(pb.InferRequest(model="small", inputs=[tensor]), timeout=timeout_s)
        except grpc.RpcError:
            return False
        return True


@contextmanager
def loading(server: ServerProcess, folder: Path, source: str, release: Callable[[], object]) -> Iterator[None]:
    """Another model, whose source does not come to an end before ``release``, which the block's end calls."""
    write_model(folder / "models", "later", SMALL_TOML.replace("Small", source))
    with ThreadPoolExecutor(1) as pool, connection(server) as channel:
        load: Future[bytes] = pool.submit(channel.unary_unary(LOAD, None, None), LATER, timeout=PATIENCE_S)
        try:
            end = time.monotonic() + PATIENCE_S
            while not (folder / "begun").exists():
                assert time.monotonic() < end, "waited in vain"
                assert not load.done(), load.exception()
                time.sleep(0.02)
            yield
        finally:
            release()
        load.result(PATIENCE_S)


def test_python_threads_that_compute_do_not_starve_the_probe(small: Path) -> None:
    with running(small, "--admin") as server:
        with loading(server, small.parent, "computes_in_python", (small.parent / "release").touch):
            assert lives(server)
        assert infers(server, PATIENCE_S)


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_answer_the_probe_while_somebody_keeps_the_interpreter_to_himself(small: Path, workers: int) -> None:
    """Without workers nobody can, and the probe bears it for as long as the manifests say."""
    os.mkfifo(pipe := small.parent / "release")

    def release() -> None:
        os.close(os.open(pipe, os.O_WRONLY))

    with running(small, "--admin", f"--workers={workers}") as server:
        with loading(server, small.parent, "holds_the_interpreter", release):
            assert lives(server) if workers else not alive(server, 1.0)
            assert not infers(server, 0.5)
        assert lives(server)
        assert infers(server, PATIENCE_S)
