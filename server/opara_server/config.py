"""What can be set of the server by its caller. The command line derives its options from ServerConfig."""

from __future__ import annotations

import os
import re
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from opara_server.model_config import Policy
from opara_server.settings import ConfigError, Settings, problems

MESSAGE_LIMIT = 2**31 - 1  # bytes; gRPC keeps the limit in an int32, and no protobuf message is larger
STREAM_BACKLOG_BYTES = 1 << 28
_MOST_S = 2_000_000  # gRPC counts milliseconds in an int32
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0, le=_MOST_S)]


def _name_or_address(host: str) -> str:
    """An IPv6 address without the brackets that it has before a port."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        ip_address(bare)
    except ValueError:
        if not re.fullmatch(r"[\w.-]+", host):
            raise ValueError(f"{host!r} is not a host's name or address (ports have an option of their own)") from None
        return host
    return bare


Host = Annotated[str, AfterValidator(_name_or_address)]


def flag(name: str) -> str:
    """The command line's option for a field of ServerConfig."""
    return "--" + name.removesuffix("_s").replace("_", "-")


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "opara-serve"


class ServerConfig(Settings):
    """Everything a server is told from outside."""

    models: Path = Field(description="Folder with one folder per model.")
    host: Host = Field("127.0.0.1", description="Address the gRPC server listens on.")
    port: Port = Field(50051, description="Port of the gRPC server; 0 picks a free one.")
    metrics_host: Host = Field("127.0.0.1", description="Address the metrics are served on.")
    metrics_port: Port = Field(9464, description="Port of the metrics; 0 picks a free one.")
    transport: Literal["cq", "aio"] = Field(
        "cq", description="What carries the calls: a loop straight on gRPC's completion queue, or grpc.aio."
    )
    busy_poll_us: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0,
        description="Microseconds for which the thread that takes calls looks for more, and reads them itself, before "
        "it sleeps: a lone caller's answers come sooner, for processor time and fewer requests a second of many.",
    )
    workers: NonNegativeInt = Field(
        0, description="Processes that take calls, beside one that owns the device; 0: one process does both."
    )
    cache_dir: Path = Field(default_factory=_cache_dir, description="Folder where measured plans are kept.")
    policy: Policy | None = Field(None, description="Policy for every model, instead of what its model.toml says.")
    admin: bool = Field(False, description="Let clients load, unload and profile models.")
    sample_streams_every_s: Seconds = Field(
        0.0,
        description="Seconds in which a few replays of each batch size are traced once, while requests wait; 0: only "
        "when a model is loaded, or asked to.",
    )
    strict: bool = Field(False, description="End the start-up when a model fails to load.")
    listen_when_ready: bool = Field(
        False, description="Open the port once the models are ready: for balancers that do not ask for health."
    )
    drain_delay_s: NonNegativeFloat = Field(
        0.0, description="Seconds to keep serving, NOT_SERVING already, after the first SIGTERM."
    )
    grace_s: NonNegativeFloat = Field(30.0, description="Seconds that requests in flight get to finish at the end.")
    tls_certificate: Path | None = Field(
        None, description="PEM file of the server's certificate and those between it and the root: serves with TLS."
    )
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key.")
    tls_client_ca: Path | None = Field(
        None, description="PEM file of authorities: clients must present a certificate of one of them."
    )
    token_file: Path | None = Field(None, description="File of bearer tokens, one a line: calls must carry one.")
    admin_token_file: Path | None = Field(
        None, description="Likewise, of those that --admin's calls must carry; they are good for all others, too."
    )
    max_message_bytes: Annotated[int, Field(ge=0, le=MESSAGE_LIMIT)] = Field(
        0, description="Bytes of the largest message taken; 0: as the models' max_rows needs."
    )
    max_concurrent_streams: PositiveInt = Field(
        1024, le=2**31 - 1, description="Calls that one connection may have open at a time; a client's others wait."
    )
    max_stream_backlog_bytes: PositiveInt = Field(
        STREAM_BACKLOG_BYTES,
        description="Bytes of streams' answers that may wait in a process for clients to take those before them; from "
        "then on a stream has one request in flight.",
    )
    max_connection_idle_s: Seconds = Field(
        3600.0, description="Seconds after which a connection without calls is closed; 0 never."
    )
    max_connection_age_s: Seconds = Field(
        0.0, description="Seconds after which a connection is closed gracefully, to spread clients anew; 0 never."
    )
    max_connection_age_grace_s: Seconds = Field(
        30.0, description="Seconds that a connection past its age gets to finish its calls."
    )
    keepalive_time_s: Seconds = Field(
        60.0, description="Seconds of silence after which a client is pinged, to find those that vanished; 0 never."
    )
    keepalive_timeout_s: Annotated[float, Field(gt=0, le=_MOST_S)] = Field(
        20.0, description="Seconds after which a client that does not answer a ping is gone."
    )
    keepalive_min_interval_s: Seconds = Field(
        10.0, description="Seconds that clients must leave between their pings; those that do not are disconnected."
    )
    keepalive_calls_only: bool = Field(False, description="No pings, nor from clients, while no call is open.")
    tracing: bool = Field(
        False, description="Send spans of sampled requests, as OpenTelemetry's OTEL_* variables say (extra 'tracing')."
    )
    log_requests: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Share of requests that get a line in the log; the server's own faults always do."
    )
    log_format: Literal["text", "json"] = Field("text", description="How log lines are written.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least that is logged.")

    @model_validator(mode="after")
    def _security_is_complete(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("--tls-certificate and --tls-key are only of use together")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("--tls-client-ca needs a --tls-certificate and its --tls-key")
        if self.admin_token_file and not self.admin:
            raise ValueError("--admin-token-file is only of use with --admin")
        return self

    @model_validator(mode="after")
    def _polls_what_it_can(self) -> Self:
        if self.busy_poll_us and self.transport != "cq":
            raise ValueError("--busy-poll-us is only of use with --transport cq")
        return self

    @model_validator(mode="after")
    def _workers_can_be_had(self) -> Self:
        missing = [name for name in ("memfd_create", "eventfd") if not hasattr(os, name)]
        missing += [] if hasattr(socket, "SO_REUSEPORT") else ["SO_REUSEPORT"]
        if self.workers and missing:
            raise ValueError(f"--workers share a port and memory as Linux can, but there is no {missing[0]} here")
        return self

    @classmethod
    def of(cls, **options: object) -> ServerConfig:
        """Raises ConfigError where pydantic would raise ValidationError."""
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            raise ConfigError("; ".join(problems(error, cls, options, flag))) from None
