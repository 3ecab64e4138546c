"""How the client's channels behave: balancing, retries, message limits, keepalive, TLS."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import grpc
import grpc.aio

from opara_client.security import Tls

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_MAX_MESSAGE_BYTES = 64 << 20
READY_POLL_S = 0.1  # between two health checks of wait_ready
_BARE_HOST = re.compile(r"[\w.-]+")  # for which gRPC takes port 443

# Each may run twice without harm. InferStream is left out: a stream that broke has answered some of its requests.
# A server on gRPC's core that stops tells CANCELLED to calls that come after its shutdown, until clients have heard of
# it (GOAWAY). What the caller cancels is never tried again.
_RETRIED = ("Infer", "ListModels", "GetModel")

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "opara.v1.InferenceService", "method": method} for method in _RETRIED],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
}


Options = Sequence[tuple[str, str | int]]
"""gRPC's channel arguments."""


def open_channel(
    target: str, options: Options, tls: Tls | None, credentials: grpc.ChannelCredentials | None = None
) -> grpc.Channel:
    """``tls`` or ``credentials``; without either it talks plain text. Raises ValueError for both, for a URL, and for a
    host without a port that would be talked to in plain text, and what ``Tls.credentials`` raises."""
    options, credentials = _secured(target, options, tls, credentials)
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)


def open_async_channel(
    target: str, options: Options, tls: Tls | None, credentials: grpc.ChannelCredentials | None = None
) -> grpc.aio.Channel:
    """The same for asyncio."""
    options, credentials = _secured(target, options, tls, credentials)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, credentials, options)


def _secured(
    target: str, options: Options, tls: Tls | None, credentials: grpc.ChannelCredentials | None
) -> tuple[Options, grpc.ChannelCredentials | None]:
    if target.startswith(("http://", "https://")):
        raise ValueError(f"{target}: HOST:PORT is wanted, without http://; TLS is asked for with tls")
    if tls is None and credentials is None and _BARE_HOST.fullmatch(target):
        raise ValueError(f"{target}: HOST:PORT is wanted, as {target}:50051")
    if tls is None:
        return options, credentials
    if credentials is not None:
        raise ValueError("credentials or tls, not both")
    return [*options, *tls.options()], tls.credentials()


def channel_options(max_message_bytes: int) -> list[tuple[str, str | int]]:
    """gRPC's channel arguments. ``max_message_bytes`` bounds one message either way."""
    return [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # A call that outgrows this buffer is never tried again; gRPC's default is 256 KiB, less than two images.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes + 4096),
        # While calls are in flight; opara-serve allows one every 10 s. A keepalive also sets TCP_USER_TIMEOUT: a dead
        # peer is noticed 20 s after something was sent to it.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
