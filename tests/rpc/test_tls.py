"""TLS and mTLS, on either transport."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization as pem

from opara_server.app import Application
from opara_server.settings import ConfigError
from tests.certificates import Authority, Issued
from tests.rpc.served import MODEL, Served, channel_to, config, serve


def tls(issued: Issued, client_ca: Path | None = None) -> dict[str, Any]:
    return {"tls_certificate": issued.certificate, "tls_key": issued.key, "tls_client_ca": client_ca}


@pytest.fixture
def own(authority: Authority, tmp_path: Path) -> Issued:
    """The server's, in files of this test alone."""
    issued = authority.issue("server")
    copies = Issued(tmp_path / "server.pem", tmp_path / "server.key")
    shutil.copy(issued.certificate, copies.certificate)
    shutil.copy(issued.key, copies.key)
    return copies


async def answers(served: Served, credentials: grpc.ChannelCredentials | None) -> bool:
    """Whether a connection of its own gets its answer; if not, it fails as connections do."""
    async with channel_to(served.app, credentials) as channel:
        other = Served(served.app, served.device, channel)
        try:
            return await other.infer(1.0) == [2.0]
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False


async def test_clients_that_trust_its_authority_are_answered(
    models: Path, transport: str, own: Issued, authority: Authority, stranger: Authority
) -> None:
    async with serve(models, transport=transport, credentials=authority.trusted(), **tls(own)) as served:
        assert await served.infer(3.0) == [6.0]
        assert await served.health(MODEL) == 1
        assert not await answers(served, stranger.trusted())
        assert not await answers(served, None)
        assert await served.infer(3.0) == [6.0]


async def test_with_an_authority_of_clients_they_need_its_certificate(
    models: Path, transport: str, own: Issued, authority: Authority, stranger: Authority
) -> None:
    clients = stranger  # another authority than the server's own
    good = authority.trusted(clients.issue("client", "client.test"))
    async with serve(models, transport=transport, credentials=good, **tls(own, clients.file)) as served:
        assert await served.infer(3.0) == [6.0]
        assert not await answers(served, authority.trusted())
        assert not await answers(served, authority.trusted(authority.issue("client", "client.test")))
        assert await served.infer(3.0) == [6.0]


async def test_new_connections_get_the_certificate_that_replaced_the_first(
    models: Path,
    transport: str,
    own: Issued,
    authority: Authority,
    stranger: Authority,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "opara_server.rpc.tls")
    new = stranger.issue("server")
    async with serve(models, transport=transport, credentials=authority.trusted(), **tls(own)) as served:
        assert await served.infer(1.0) == [2.0]
        shutil.copy(new.certificate, own.certificate)  # in the midst of it: the key is still the other's
        assert await answers(served, authority.trusted())
        assert "is not the key of the certificate" in caplog.text
        shutil.copy(new.key, own.key)
        assert await answers(served, stranger.trusted())
        assert not await answers(served, authority.trusted())
        assert await served.infer(1.0) == [2.0]  # its connection stays
        own.key.unlink()
        assert await answers(served, stranger.trusted())


def test_files_that_cannot_be_used_are_one_clear_line(
    models: Path, own: Issued, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    nothing, nonsense = tmp_path / "nothing.pem", tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    for files, says in (
        (tls(Issued(nothing, own.key)), f"{nothing}: No such file or directory"),
        (tls(Issued(own.certificate, nothing)), f"{nothing}: No such file or directory"),
        (tls(own, nothing), f"{nothing}: No such file or directory"),
        (tls(own, tmp_path), f"{tmp_path}: Is a directory"),
        (tls(Issued(nonsense, own.key)), f"{nonsense}, {own.key}: no certificate and key in PEM"),
        (tls(own, nonsense), f"{nonsense}: no certificates in PEM"),
        (tls(Issued(own.certificate, stranger.issue("other").key)), "is not the key of the certificate in"),
    ):
        with pytest.raises(ConfigError) as caught:
            Application(config(models, **files))
        assert says in str(caught.value)


async def test_an_encrypted_key_is_not_asked_for_its_password(models: Path, own: Issued) -> None:
    key = pem.load_pem_private_key(own.key.read_bytes(), None)
    secret = pem.BestAvailableEncryption(b"secret")
    own.key.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, secret))
    with pytest.raises(ConfigError, match="the private key is encrypted"):
        Application(config(models, **tls(own)))
