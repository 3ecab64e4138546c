"""How the channel behaves: retries, balancing, waiting, message limits, TLS."""

from __future__ import annotations

import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from opara_client import DeadlineExceeded, InvalidArgument, NotFound, OparaClient, ResourceExhausted, Tls, Unavailable
from opara_client.cli import main
from tests.client.fake_server import NOT_SERVING, PATIENCE_S, SERVING, FakeServer, default_models
from tests.ports import reserved_port

X = np.array([[1, 2]], np.float32)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_what_a_server_that_stops_says_is_tried_again(
    server: FakeServer, client: OparaClient, code: grpc.StatusCode
) -> None:
    server.models["double"].failures, server.models["double"].code = 2, code
    np.testing.assert_array_equal(client.infer("double", {"x": X})["x"], X * 2)
    assert server.seen.calls["Infer"] == 3


def test_large_requests_are_tried_again_too(server: FakeServer, client: OparaClient) -> None:
    server.models["double"].failures = 2
    large = np.ones((1, 2 << 20), np.float32)
    np.testing.assert_array_equal(client.infer("double", {"x": large})["x"], large * 2)
    assert server.seen.calls["Infer"] == 3


def test_after_four_attempts_it_is_unavailable(server: FakeServer, client: OparaClient) -> None:
    server.models["double"].failures = 5
    with pytest.raises(Unavailable, match="is loading"):
        client.infer("double", {"x": X})
    assert server.seen.calls["Infer"] == 4


@pytest.mark.parametrize(("model", "error"), [("nobody", NotFound), ("double", InvalidArgument)])
def test_other_errors_are_not_tried_again(
    server: FakeServer, client: OparaClient, model: str, error: type[Exception]
) -> None:
    client.infer("double", {"x": X})
    server.models["double"].inputs.clear()
    with pytest.raises(error):
        client.infer(model, {"x": X})
    assert server.seen.calls["Infer"] == (2 if model == "double" else 1)
    assert server.seen.calls["GetModel"] == (1 if model == "double" else 2)


def test_calls_are_spread_over_the_addresses() -> None:
    with FakeServer(default_models()) as one, FakeServer(default_models()) as two:
        target = f"ipv4:{one.target},{two.target}"
        with OparaClient(target, timeout=PATIENCE_S) as client:
            give_up = time.monotonic() + PATIENCE_S
            while not (one.seen.calls["Infer"] and two.seen.calls["Infer"]):  # both connections are up
                assert time.monotonic() < give_up
                client.infer("double", {"x": X})
            before = one.seen.calls["Infer"], two.seen.calls["Infer"]
            for _ in range(20):
                client.infer("double", {"x": X})
        assert (one.seen.calls["Infer"] - before[0], two.seen.calls["Infer"] - before[1]) == (10, 10)


def test_a_dns_target(server: FakeServer) -> None:
    with OparaClient(f"dns:///localhost:{server.port}", timeout=PATIENCE_S) as client:
        np.testing.assert_array_equal(client.infer("double", {"x": X})["x"], X * 2)


def test_wait_for_ready_waits_for_a_server_that_starts_later() -> None:
    with (
        reserved_port() as port,
        OparaClient(f"127.0.0.1:{port}", timeout=PATIENCE_S, wait_for_ready=True) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        with OparaClient(f"127.0.0.1:{port}", timeout=PATIENCE_S) as impatient, pytest.raises(Unavailable):
            impatient.models()
        answer = pool.submit(client.infer, "double", {"x": X})
        with FakeServer(default_models(), port=port) as server:
            np.testing.assert_array_equal(answer.result(PATIENCE_S)["x"], X * 2)
            assert server.seen.calls["Infer"] == 1


def test_wait_ready_waits_for_serving(server: FakeServer, client: OparaClient) -> None:
    server.health.set("", NOT_SERVING)
    with pytest.raises(DeadlineExceeded, match=f"{server.target} is not SERVING after 0.3 s"):
        client.wait_ready(0.3)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait_ready, PATIENCE_S)
        assert not waiting.done()
        server.health.set("", SERVING)
        waiting.result(PATIENCE_S)


def test_wait_ready_does_not_wait_for_a_model_that_is_not_there(client: OparaClient) -> None:
    with pytest.raises(NotFound):
        client.wait_ready(PATIENCE_S, "nobody")


def test_wait_ready_without_any_server() -> None:
    with OparaClient("127.0.0.1:1") as client, pytest.raises(DeadlineExceeded, match="not SERVING"):
        client.wait_ready(0.3)


def test_messages_past_grpcs_own_4_mib_fit(client: OparaClient) -> None:
    large = np.zeros((1, 3 << 20), np.float32)  # 12 MiB
    assert client.infer("double", {"x": large})["x"].nbytes == large.nbytes


def test_messages_over_the_limit_are_refused_here(server: FakeServer) -> None:
    with OparaClient(server.target, timeout=PATIENCE_S, max_message_bytes=2000) as client:
        with pytest.raises(ResourceExhausted, match=r"vs\. 2000\) bytes: max_message_bytes of the client$"):
            client.infer("double", {"x": np.zeros((1, 1000), np.float32)})
        np.testing.assert_array_equal(client.infer("double", {"x": X})["x"], X * 2)
    assert server.seen.calls["Infer"] == 1


def test_messages_over_the_servers_limit_come_with_a_cure(server: FakeServer) -> None:
    said = r"^RESOURCE_EXHAUSTED: SERVER: .* vs\. 67108864\) bytes: fewer rows a request, or a larger max_rows"
    client = OparaClient(server.target, timeout=PATIENCE_S, max_message_bytes=80 << 20)
    with client, pytest.raises(ResourceExhausted, match=said):
        client.infer("double", {"x": np.zeros((1, 17 << 20), np.float32)})


@pytest.mark.parametrize("target", ["http://127.0.0.1:50051", "https://models.example"])
def test_a_url_is_no_target(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"^http.*: HOST:PORT is wanted, without http://"):
        OparaClient(target)
    with pytest.raises(SystemExit, match="2"):
        main(["health", "--target", target])
    assert capsys.readouterr().err.startswith(f"opara-client: {target}: HOST:PORT is wanted")


@pytest.mark.parametrize("target", ["127.0.0.1", "models.example"])
def test_a_host_without_a_port_is_no_target_but_with_tls(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=rf"^{target}: HOST:PORT is wanted, as {target}:50051$"):
        OparaClient(target)
    with pytest.raises(SystemExit, match="2"):
        main(["health", "--target", target])
    assert capsys.readouterr().err.startswith(f"opara-client: {target}: HOST:PORT is wanted")
    OparaClient(target, tls=Tls()).close()  # of port 443


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -keyout {key}"
        f" -out {certificate} -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1".split(),
        check=True,
        capture_output=True,
    )
    identity = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    with FakeServer(default_models(), identity) as server:
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        with OparaClient(server.target, credentials=trusted, timeout=PATIENCE_S) as client:
            np.testing.assert_array_equal(client.infer("double", {"x": X})["x"], X * 2)
        stranger = grpc.ssl_channel_credentials()
        with OparaClient(server.target, credentials=stranger, timeout=PATIENCE_S) as client, pytest.raises(Unavailable):
            client.models()
