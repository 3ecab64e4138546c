"""The trace that a caller is in goes with its calls, where OpenTelemetry is installed."""

from __future__ import annotations

from collections.abc import Callable

from opara_client.security import Metadata


def in_context(own: Callable[[], Metadata | None]) -> Callable[[], Metadata | None]:
    """What a call carries: its ``own``, and the current context in the headers that OTEL_PROPAGATORS names."""
    try:
        from opentelemetry import propagate  # noqa: PLC0415 - where it is installed; it looks for propagators
    except ImportError:
        return own

    def metadata() -> Metadata | None:
        headers: dict[str, str] = {}
        propagate.inject(headers)
        return (*(own() or ()), *((name.lower(), value) for name, value in headers.items())) or None

    return metadata
