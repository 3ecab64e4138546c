"""How log lines look: text for people, JSON for collectors. One line per event, details as fields (``extra=``)."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from math import inf
from types import TracebackType
from typing import Any, Literal, TextIO

log = logging.getLogger(__name__)

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller added with ``extra=``."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class JsonFormatter(logging.Formatter):
    """One JSON object per line, with the traceback as a field."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """time LEVEL message key=value ...; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")  # nobody forges a line of ours
        fields = "".join(f" {key}={value!r}" for key, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname:<7} {message}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(style: Literal["text", "json"], level: str, stream: TextIO | None = None, role: str = "") -> logging.Handler:
    """Log everything from ``level`` on to ``stream`` (default: stderr), in place of a handler set up before. ``role``:
    of a process that shares the stream with others: a field of its lines, with its number."""
    handler = logging.StreamHandler(stream or sys.stderr)
    if role:
        handler.addFilter(partial(_of_process, role, os.getpid()))
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    handler.set_name("opara")
    root = logging.getLogger()
    for old in [h for h in root.handlers if h.get_name() == "opara"]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("grpc").setLevel(logging.INFO if level == "debug" else logging.NOTSET)  # it tells of every poller
    return handler


def take_over() -> None:
    """Warnings, and exceptions that nobody catches, are lines of the log from now on, in this process."""
    warnings.showwarning = _warned
    sys.excepthook = _uncaught
    sys.unraisablehook = lambda found: _fault(found.exc_type, found.exc_value, found.exc_traceback)
    threading.excepthook = lambda found: _fault(found.exc_type, found.exc_value, found.exc_traceback)


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001 - of the interface
    line: str | None = None,  # noqa: ARG001
) -> None:
    logging.getLogger("py.warnings").warning("%s: %s", category.__name__, message, extra={"at": f"{filename}:{lineno}"})


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        log.critical("the process ends", exc_info=(kind, error, trace))


def _fault(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if not issubclass(kind, SystemExit):  # with which a thread may end
        log.error("nobody has caught an exception", exc_info=(kind, error or kind(), trace))


def tell_failure(error: Exception) -> None:
    """Why the process cannot go on, in its last line: as commands say it, or where lines are JSON, as one of these."""
    if any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers):
        log.critical("%s", error)
    else:
        print(f"opara-server: {error}", file=sys.stderr)


def _of_process(role: str, pid: int, record: logging.LogRecord) -> bool:
    vars(record).update(role=role, pid=pid)
    return True


def news_only(
    tell: Callable[[str, float], None], every_s: float = 10.0, now: Callable[[], float] = time.monotonic
) -> Callable[[str, float], None]:
    """Of progress that is reported again and again only what is new goes to ``tell``: another text at once, of the same
    text another percentage, every ``every_s`` seconds at most."""
    said, said_at = ("", 0), -inf

    def report(what: str, share: float) -> None:
        nonlocal said, said_at
        news = what, round(100 * share)
        if what != said[0] or (news != said and now() - said_at >= every_s):
            said, said_at = news, now()
            tell(what, share)

    return report
