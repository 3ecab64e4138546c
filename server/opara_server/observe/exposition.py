"""The metrics port: /metrics and a few pages, for GETs alone, of a bounded number of clients that get bounded time."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qsl
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

log = logging.getLogger(__name__)

AT_ONCE = 32  # connections; those beyond are closed
PATIENCE_S = 10.0  # that a client may take for its request, and for each part of the answer
_ALWAYS = (
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)


@dataclass(frozen=True, slots=True)
class Content:
    """``kind``: its media type. ``headers``: further ones."""

    kind: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


Page = Callable[[Mapping[str, str]], Content | None]
"""Takes the query; None where there is nothing under it. Called on threads of the server's."""


class Exposition:
    """Serves from its construction until ``stop``; ``port``: where."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, pages: Mapping[str, Page]) -> None:
        """``port``: 0: any. ``pages``: by path. Raises OSError."""
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        kind: type[_Server] = type("Server", (_Server,), {"address_family": family})
        app = _Pages(registry, pages)
        self._server: _Server = make_server(str(address[0]), port, app, server_class=kind, handler_class=_Handler)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="opara-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Blocks until nothing new is answered."""
        host, port = self._server.server_address[:2]
        ending = threading.Thread(target=self._server.shutdown)
        ending.start()
        while ending.is_alive():  # it looks whether it is to end twice a second, and whenever somebody connects
            with suppress(OSError), socket.create_connection((str(host), port), timeout=1.0):
                ending.join(0.01)
        self._server.server_close()
        self._thread.join()


class _Pages:
    def __init__(self, registry: CollectorRegistry, pages: Mapping[str, Page]) -> None:
        self._metrics = make_wsgi_app(registry)
        self._pages = pages

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if method not in {"GET", "HEAD"}:
            return _answer(start_response, HTTPStatus.METHOD_NOT_ALLOWED, headers=(("Allow", "GET, HEAD"),))
        try:
            if path == "/metrics":  # which fails, too, where versions that a client names in Accept are no numbers
                answered: Iterable[bytes] = self._metrics(environ | {"REQUEST_METHOD": "GET"}, start_response)
                return answered if method == "GET" else ()
            content = self._content(path, environ.get("QUERY_STRING", ""))
        except Exception:
            log.exception("the page %s cannot be made", path)
            return _answer(start_response, HTTPStatus.INTERNAL_SERVER_ERROR)
        if content is None:
            return _answer(start_response, HTTPStatus.NOT_FOUND)
        body = _answer(start_response, HTTPStatus.OK, content, content.headers)
        return body if method == "GET" else ()

    def _content(self, path: str, query: str) -> Content | None:
        page = self._pages.get(path)
        return None if page is None else page(dict(parse_qsl(query)))


def _answer(
    start_response: StartResponse,
    status: HTTPStatus,
    content: Content | None = None,
    headers: tuple[tuple[str, str], ...] = (),
) -> list[bytes]:
    """Without ``content``: what the status is called."""
    content = content or Content("text/plain; charset=utf-8", f"{status.phrase}\n".encode())
    own = ("Content-Type", content.kind), ("Content-Length", str(len(content.body)))
    start_response(f"{status.value} {status.phrase}", [*own, *_ALWAYS, *headers])
    return [content.body]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = AT_ONCE

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(AT_ONCE)
        super().__init__(*arguments)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - socketserver's
        return self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's
        log.debug("a client of the metrics port is gone", exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE_S

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - http.server's
        """Nobody wants a line per scrape."""
