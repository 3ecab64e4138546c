"""How a client knows the server, and the server the client: TLS and bearer tokens."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import grpc

from opara_client.errors import Unauthenticated

Metadata = tuple[tuple[str, str], ...]
_LOOK_S = 1.0  # a token's file is looked at so often, when calls are made


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM. ``ca``: the authorities to trust; None for gRPC's own list of them. ``certificate``, ``key``: the
    client's own, for servers that ask for it. ``server_name``: what the server's certificate is for, where that is not
    the name it is called by. Raises ValueError for a certificate without its key."""

    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a certificate and its key are only of use together")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises OSError, or ValueError for what is in them."""
        files = (self.ca, self.key, self.certificate)
        contents = [None if file is None else Path(file).read_bytes() for file in files]
        self._check()
        return grpc.ssl_channel_credentials(*contents)

    def options(self) -> list[tuple[str, str | int]]:
        """gRPC's channel arguments."""
        return [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []

    def _check(self) -> None:
        """With gRPC alone every call would be UNAVAILABLE, and nothing would say why."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
        except ssl.SSLError:
            raise ValueError(f"{self.ca}: no certificates in PEM") from None
        try:
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, password=_refuse_password)
        except ssl.SSLError:
            raise ValueError(f"{self.certificate}, {self.key}: no certificate in PEM with its key") from None


def _refuse_password() -> NoReturn:
    raise ValueError("the private key is encrypted")


@dataclass(slots=True)
class Bearer:
    """A bearer token, or a file that holds one and is read again when it changes. For calls of any thread."""

    token: str = ""
    file: Path | str | None = None
    _version: tuple[int, int] | None = None
    _look_at: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for a token that no header can carry, and for two."""
        if self.token and self.file:
            raise ValueError("a token or a file that holds it, not both")
        if self.token and not _is_token(self.token):
            raise ValueError("a bearer token is one word of ASCII")

    def metadata(self) -> Metadata | None:
        """What a call carries; None without a token. Raises Unauthenticated where the file holds none."""
        if self.file is not None and time.monotonic() >= self._look_at:
            self._read(Path(self.file))
        return (("authorization", f"Bearer {self.token}"),) if self.token else None

    def _read(self, file: Path) -> None:
        try:
            stat = file.stat()
            version = (stat.st_ino, stat.st_mtime_ns)
            if version != self._version:
                token = file.read_text().strip()
                if not _is_token(token):
                    raise Unauthenticated(f"{file}: no bearer token, which is one word of ASCII")
                self.token, self._version = token, version
        except (OSError, UnicodeDecodeError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or "not text"
            raise Unauthenticated(f"{file}: {reason}") from error
        self._look_at = time.monotonic() + _LOOK_S


def _is_token(text: str) -> bool:
    return text.isascii() and text.isprintable() and bool(text) and " " not in text
