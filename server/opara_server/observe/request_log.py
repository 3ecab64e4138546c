"""Lines of requests: of a share of them, and of every one that failed by the server's own fault."""

from __future__ import annotations

import logging

from opara_server.observe.tracing import Call, SpanContext

log = logging.getLogger(__name__)

MOST_SHOWN = 128  # characters of what a client chose: it may be megabytes long
ID_HEADER = "x-request-id"  # what proxies name requests by


def shown_id(own: bytes, call: Call) -> str:
    """The name of a request: its ``own`` id, else its call's; empty where it has none."""
    if own:
        return own.decode(errors="replace")[:MOST_SHOWN]
    metadata = call.invocation_metadata() or ()
    return next((value[:MOST_SHOWN] for name, value in metadata if name == ID_HEADER and isinstance(value, str)), "")


def log_request(
    method: str,
    model: str,
    code: str,
    seconds: float,
    rows: int,
    request_id: str,
    text: str,
    span: SpanContext | None,
) -> None:
    """One line; what is not known of it is left out. ``text``: why it failed."""
    fields = {
        "method": method,
        "model": model,
        "code": code,
        "seconds": round(seconds, 6),
        "rows": rows,
        "request_id": request_id,
        "error": text,
        **({} if span is None else {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}),
    }
    level = logging.ERROR if code == "INTERNAL" else logging.INFO
    log.log(level, "request", extra={name: value for name, value in fields.items() if value})
