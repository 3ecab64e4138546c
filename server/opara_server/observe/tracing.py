"""The seam between those who measure requests and OpenTelemetry (spans.py): what is known of a sampled request.

A request that is not sampled is None to all of them. Times are on time.monotonic(), which processes of one machine
share.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from opara_server.settings import ConfigError

Metadata = Collection[tuple[str, str | bytes]]
Times = tuple[float, float]
"""When something began, and when it ended."""


class Call(Protocol):
    """What a transport knows of a call beside its messages."""

    def invocation_metadata(self) -> Metadata | None: ...


class SpanContext(NamedTuple):
    """The name of a sampled request's own span, which its other spans are children of. ``state``: W3C's tracestate."""

    trace_id: int
    span_id: int
    state: str = ""


class RequestSpan(Protocol):
    """The span of a request, from its message to its answer."""

    @property
    def context(self) -> SpanContext: ...

    def end(self, *, code: int, text: str, model: str, rows: int, request_id: str) -> None:
        """It is answered: with gRPC's ``code``, and ``text`` where it failed. ``rows``: 0 where they are not known."""
        ...


class Sampled(NamedTuple):
    """A sampled request of a batch. ``arrived``: None where an earlier batch had its first rows."""

    span: SpanContext
    arrived: float | None


class Moments(NamedTuple):
    """Of what a batch did."""

    copy_in: Times
    replay: Times
    copy_out: Times


@dataclass(frozen=True, slots=True)
class BatchSpan:
    """A batch with ``sampled`` requests among its ``requests``. ``moments``: None where it failed."""

    model: str
    bucket: int
    rows: int
    requests: int
    sampled: tuple[Sampled, ...]
    taken: float
    ended: float
    moments: Moments | None


class Tracer(Protocol):
    """Its methods are for any thread, return at once and raise nothing."""

    def begin(self, method: str, call: Call) -> RequestSpan | None:
        """A request has come. ``method``: its full path. None unless it is sampled."""
        ...

    def batch(self, batch: BatchSpan) -> None:
        """A batch is over."""
        ...

    def close(self) -> None:
        """Send what there is. Takes a few seconds at most."""
        ...


def open_tracer() -> Tracer | None:
    """As the environment's OTEL_* variables say; None where they say that nothing is traced. Raises ConfigError."""
    try:
        from opara_server.observe.spans import tracer_of_environment  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(f"tracing needs: pip install 'opara-serve[tracing]' ({error})") from None
    except ValueError as error:  # OpenTelemetry looks for propagators as it is imported
        raise ConfigError(f"OTEL_PROPAGATORS: {error}") from None
    return tracer_of_environment()
