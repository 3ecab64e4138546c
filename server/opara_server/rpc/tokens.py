"""Bearer tokens in a file, read again when it changes: one a line; blank lines and those that begin with # are none."""

from __future__ import annotations

import logging
import re
import secrets
import time
from hashlib import blake2b
from pathlib import Path

from opara_server.rpc.files import version, why
from opara_server.settings import ConfigError

log = logging.getLogger(__name__)

_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750
_LOOK_S = 1.0  # the file is looked at so often, when calls come


class TokenFile:
    """Its tokens, as they are now or were when the file last was as it should be. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        self._path = path
        self._key = secrets.token_bytes(32)
        try:
            self._version = version([path])
        except OSError as error:
            raise ConfigError(f"{path}: {why(error)}") from None
        self._digests = self._read()
        self._look_at = time.monotonic() + _LOOK_S

    def holds(self, token: str) -> bool:
        """Compares digests under a key that nobody knows: how long it takes tells nothing of the tokens."""
        if time.monotonic() >= self._look_at:
            self._look()
        return self._digest(token) in self._digests

    def _look(self) -> None:
        self._look_at = time.monotonic() + _LOOK_S
        try:
            now = version([self._path])
            if now == self._version:
                return
            self._version = now
            self._digests = self._read()
        except (OSError, ConfigError) as error:
            log.error("the tokens that were there before stay good: %s", error)
            return
        log.info("tokens were read again", extra={"file": str(self._path), "tokens": len(self._digests)})

    def _read(self) -> frozenset[bytes]:
        """Raises ConfigError, which never holds a token."""
        try:
            lines = self._path.read_text(encoding="ascii").splitlines()
        except UnicodeDecodeError:
            raise ConfigError(f"{self._path}: not plain ASCII") from None
        except OSError as error:
            raise ConfigError(f"{self._path}: {why(error)}") from None
        tokens = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()[:1] not in {"", "#"}}
        if wrong := [number for number, token in tokens.items() if not _TOKEN.fullmatch(token)]:
            raise ConfigError(f"{self._path}: line {wrong[0]} is no token: letters, digits and -._~+/, = at the end")
        if not tokens:
            raise ConfigError(f"{self._path}: no token in it")
        return frozenset(map(self._digest, tokens.values()))

    def _digest(self, token: str) -> bytes:
        return blake2b(token.encode(), digest_size=32, key=self._key).digest()
