"""Certificates for tests, made when they run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
import trustme

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Issued:
    """PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates; ``file`` is its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, identity: str = LOOPBACK) -> Issued:
        """A certificate for ``identity``, in files of that ``name``."""
        issued = Issued(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        made = self._ca.issue_cert(identity)
        issued.certificate.write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
        made.private_key_pem.write_to_path(str(issued.key))
        return issued

    def trusted(self, own: Issued | None = None) -> grpc.ChannelCredentials:
        """Of a client that trusts this authority. ``own``: the certificate that it presents."""
        return grpc.ssl_channel_credentials(
            self.file.read_bytes(),
            own.key.read_bytes() if own else None,
            own.certificate.read_bytes() if own else None,
        )
