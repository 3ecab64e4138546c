"""What stands between a port and the methods behind it: gRPC's options, a certificate, bearer tokens.

Made from settings alone, so that any process that listens has the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from opara_server.config import MESSAGE_LIMIT, ServerConfig
from opara_server.rpc.access import Access
from opara_server.rpc.tls import TlsFiles, server_credentials

log = logging.getLogger(__name__)

_MESSAGE_SLACK = 64 * 1024  # bytes of a message beside its tensors' data: names, shapes, the id


@dataclass(frozen=True)
class Edge:
    """``credentials``: None for plain text. ``access``: None where everybody may call everything."""

    options: tuple[tuple[str, int], ...]
    credentials: grpc.ServerCredentials | None = None
    access: Access | None = None


def make_edge(config: ServerConfig, message_limit: int, refused: Callable[[str], None]) -> Edge:
    """Reads the files that ``config`` names. ``message_limit``: bytes. ``refused`` is given the code of each call that
    is refused for its token. Raises ConfigError, which names the file that cannot be used."""
    credentials = access = None
    if config.tls_certificate and config.tls_key:
        credentials = server_credentials(TlsFiles(config.tls_certificate, config.tls_key, config.tls_client_ca))
    if config.token_file or config.admin_token_file:
        access = Access(config.token_file, config.admin_token_file, refused)
        if credentials is None:
            log.warning("without tls_certificate bearer tokens travel in plain text")
    return Edge(_options(config, message_limit), credentials, access)


def message_limit(config: ServerConfig, largest_request: int) -> int:
    """Bytes of the largest message taken. ``largest_request``: bytes of tensors that any model takes."""
    return config.max_message_bytes or min(largest_request + _MESSAGE_SLACK, MESSAGE_LIMIT)


def _options(config: ServerConfig, message_limit: int) -> tuple[tuple[str, int], ...]:
    options = {
        "grpc.so_reuseport": int(config.workers > 0),  # else a second server on the port is an error, not a lottery
        "grpc.max_receive_message_length": message_limit,  # after decompression
        "grpc.max_send_message_length": -1,  # what we send is bounded by what we take
        "grpc.max_concurrent_streams": config.max_concurrent_streams,
        # On, a call counts until gRPC has tidied up after it: clients at the limit are refused what they may call.
        "grpc.http.overload_protection": 0,
        "grpc.keepalive_timeout_ms": _ms(config.keepalive_timeout_s),
        "grpc.http2.ping_timeout_ms": _ms(config.keepalive_timeout_s),  # of gRPC's own pings, which hold ours back
        "grpc.keepalive_permit_without_calls": int(not config.keepalive_calls_only),
        "grpc.http2.min_ping_interval_without_data_ms": _ms(config.keepalive_min_interval_s),
    }
    if config.keepalive_time_s:
        options["grpc.keepalive_time_ms"] = _ms(config.keepalive_time_s)
    if config.max_connection_idle_s:
        options["grpc.max_connection_idle_ms"] = _ms(config.max_connection_idle_s)
    if config.max_connection_age_s:
        options["grpc.max_connection_age_ms"] = _ms(config.max_connection_age_s)
        options["grpc.max_connection_age_grace_ms"] = _ms(config.max_connection_age_grace_s)
    return tuple(options.items())


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
