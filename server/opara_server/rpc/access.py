"""Who may call what: bearer tokens, checked before a call's first message is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import grpc

from opara_server.rpc.errors import Failure
from opara_server.rpc.tokens import TokenFile

# Probes have no tokens, and learn nothing but whether the server serves.
OPEN = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    }
)
ADMIN = frozenset(
    {
        "/inference.GRPCInferenceService/RepositoryModelLoad",
        "/inference.GRPCInferenceService/RepositoryModelUnload",
        "/opara.v1.InferenceService/ProfileModel",
    }
)
_HEADER = "authorization"
_NONE = Failure(grpc.StatusCode.UNAUTHENTICATED, 'no bearer token: send the metadata "authorization: Bearer TOKEN"')
_WRONG = Failure(grpc.StatusCode.UNAUTHENTICATED, "the bearer token is not valid")
_NO_ADMIN = Failure(grpc.StatusCode.PERMISSION_DENIED, "this call needs the bearer token of an administrator")


class Access:
    """By the tokens of two files. A transport asks from one thread."""

    def __init__(
        self, tokens: Path | None, admin_tokens: Path | None, count: Callable[[str], None] = lambda _code: None
    ) -> None:
        """``tokens``: None: calls need none. ``admin_tokens``: None: administrators' calls need no others; these are
        good for every call. ``count`` is given the code of each refusal. Raises ConfigError."""
        self._tokens = TokenFile(tokens) if tokens else None
        self._admin_tokens = TokenFile(admin_tokens) if admin_tokens else None
        self._count = count

    def refusal(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Failure | None:
        """What a call gets instead of its answer; None for one that may be made. ``method``: its full path."""
        refused = self._refusal(method, metadata)
        if refused is not None:
            self._count(refused.code.name)
        return refused

    def _refusal(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Failure | None:
        admin = method in ADMIN and self._admin_tokens is not None
        if not admin and (self._tokens is None or method in OPEN):
            return None
        scheme, _, token = _authorization(metadata).partition(" ")
        if scheme.lower() != "bearer":
            return _NONE
        token = token.strip()
        known = self._tokens is not None and self._tokens.holds(token)
        if known and not admin:
            return None
        if self._admin_tokens is not None and self._admin_tokens.holds(token):
            return None
        return _NO_ADMIN if known else _WRONG


def _authorization(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    for name, value in metadata:
        if name == _HEADER and isinstance(value, str):
            return value
    return ""
