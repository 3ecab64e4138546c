"""TLS and bearer tokens, as the client is told of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from opara_client import HealthStatus, OparaClient, Tls, Unauthenticated, Unavailable
from opara_client.cli import main
from opara_client.security import Bearer
from tests.certificates import Authority, Issued
from tests.client.fake_server import PATIENCE_S, FakeServer, default_models

X = np.array([[1, 2]], np.float32)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def own(authority: Authority) -> Issued:
    """The client's certificate."""
    return authority.issue("client", "client.test")


@pytest.fixture
def server(authority: Authority) -> Iterator[FakeServer]:
    """Its certificate is for another name than it is called by here; it asks for one of the client."""
    issued = authority.issue("server", "models.test")
    pair = (issued.key.read_bytes(), issued.certificate.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], authority.file.read_bytes(), require_client_auth=True)
    with FakeServer(default_models(), credentials) as running:
        yield running


def test_both_sides_know_each_other(server: FakeServer, authority: Authority, own: Issued) -> None:
    tls = Tls(authority.file, own.certificate, own.key, server_name="models.test")
    with OparaClient(server.target, tls=tls, timeout=PATIENCE_S) as client:
        np.testing.assert_array_equal(client.infer("double", {"x": X})["x"], X * 2)
    paths = Tls(str(authority.file), str(own.certificate), str(own.key), server_name="models.test")
    with OparaClient(server.target, tls=paths, timeout=PATIENCE_S) as client:
        assert client.health() is HealthStatus.SERVING
    for wrong in (Tls(authority.file, own.certificate, own.key), Tls(authority.file, server_name="models.test"), Tls()):
        with OparaClient(server.target, tls=wrong, timeout=PATIENCE_S) as client, pytest.raises(Unavailable):
            client.health()


def test_the_command_line_has_it_too(
    server: FakeServer, authority: Authority, own: Issued, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"--ca={authority.file}", f"--certificate={own.certificate}", f"--key={own.key}"]
    assert main(["health", f"--target={server.target}", *files, "--server-name=models.test", "--token=t"]) == 0
    assert capsys.readouterr().out == "SERVING\n"


def test_files_that_cannot_be_used_are_told_at_once(
    tmp_path: Path, authority: Authority, own: Issued, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing, nonsense = tmp_path / "nothing", tmp_path / "nonsense"
    nonsense.write_text("nonsense")
    other = authority.issue("other")
    for options, says in (
        ([f"--ca={nothing}"], f"{nothing}: No such file or directory"),
        ([f"--ca={nonsense}"], f"{nonsense}: no certificates in PEM"),
        ([f"--certificate={own.certificate}"], "a certificate and its key are only of use together"),
        ([f"--certificate={own.certificate}", f"--key={other.key}"], "no certificate in PEM with its key"),
        (["--token=two words"], "a bearer token is one word of ASCII"),
        (["--token=t", f"--token-file={nothing}"], "a token or a file that holds it, not both"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["health", *options])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("opara-client: ")
        assert says in said
        assert said.count("\n") == 1


def test_credentials_and_tls_are_too_much() -> None:
    with pytest.raises(ValueError, match="credentials or tls, not both"):
        OparaClient(credentials=grpc.ssl_channel_credentials(), tls=Tls())


def test_a_token_is_read_again_when_its_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    bearer = Bearer(file=file)
    assert bearer.metadata() == (("authorization", "Bearer first"),)
    assert Bearer(file=str(file)).metadata() == bearer.metadata()
    file.rename(tmp_path / "old")
    file.write_text("second\n")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 2.0)
    assert bearer.metadata() == (("authorization", "Bearer second"),)
    assert Bearer("given").metadata() == (("authorization", "Bearer given"),)
    assert Bearer().metadata() is None


@pytest.mark.parametrize("content", [b"", b"two words", b"caf\xc3\xa9", b"\xff\xfe"])
def test_a_file_without_a_token_fails_the_call_and_is_not_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with OparaClient(token_file=file) as client, pytest.raises(Unauthenticated) as caught:
        client.models()
    assert str(caught.value).startswith(f"UNAUTHENTICATED: {file}: ")
    assert "words" not in str(caught.value)
    with OparaClient(token_file=tmp_path / "nothing") as client, pytest.raises(Unauthenticated, match="No such file"):
        client.models()
