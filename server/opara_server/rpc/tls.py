"""The server's certificate, read again when its files change: new connections get the new one."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import grpc

from opara_server.rpc.files import version, why
from opara_server.settings import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. ``client_ca``: None where clients need no certificate."""

    certificate: Path
    key: Path
    client_ca: Path | None

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.certificate, self.key, *([self.client_ca] if self.client_ca else ()))


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """For every connection what the files hold then, or held when they last were as they should be.

    Raises ConfigError where they are not so now.
    """
    certificates = _Certificates(files)
    return grpc.dynamic_ssl_server_credentials(
        certificates.first,
        certificates.changed,  # type: ignore[arg-type]  # None is missing in its stubs
        require_client_authentication=files.client_ca is not None,
    )


class _Certificates:
    """``changed`` is called before every handshake, on threads of gRPC's."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        try:
            self._version = version(files.all)
        except OSError as error:
            raise ConfigError(f"{error.filename}: {why(error)}") from None
        self.first = _read(files)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """None where it is to stay as it is. Files in the midst of being replaced are looked at again next time."""
        try:
            now = version(self._files.all)
            if now == self._version:
                return None
            self._version = now
            certificates = _read(self._files)
        except (OSError, ConfigError) as error:
            log.error("new connections get the certificate that was there before: %s", error)
            return None
        log.info("new connections get the new certificate", extra={"file": str(self._files.certificate)})
        return certificates


def _read(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    """Raises ConfigError, which names the file and what is wrong with it."""
    certificate, key, *client_ca = (_bytes(path) for path in files.all)
    _check(files)
    return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca[0] if client_ca else None)


def _check(files: TlsFiles) -> None:
    """As gRPC would not: it fails on the first connection, and says no more than that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.certificate, files.key, password=_refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{files.key} is not the key of the certificate in {files.certificate}") from None
        raise ConfigError(f"{files.certificate}, {files.key}: no certificate and key in PEM ({why(error)})") from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as error:
            raise ConfigError(f"{files.client_ca}: no certificates in PEM ({why(error)})") from None


def _refuse_password() -> NoReturn:
    raise ConfigError("the private key is encrypted: the server cannot ask for its password")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {why(error)}") from None
