"""What /metrics gave, again and again, kept in a file, and given again to a Prometheus that asks."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

RECORDED = Path(__file__).resolve().parents[2] / "tests" / "deploy_live" / "gpu_exposition.json.gz"
EVERY_S = 1.0  # from one reading of RECORDED to the next


def scraped(target: str, times: int, every_s: float) -> list[str]:
    """``target``: ``host:port``."""
    pages = []
    for _ in range(times):
        with urlopen(f"http://{target}/metrics", timeout=10) as page:
            pages.append(page.read().decode())
        time.sleep(every_s)
    return pages


def save(pages: Sequence[str], file: Path) -> None:
    file.write_bytes(gzip.compress(json.dumps(pages).encode(), mtime=0))


def load(file: Path) -> list[str]:
    pages: list[str] = json.loads(gzip.decompress(file.read_bytes()))
    return pages


@contextmanager
def replaying(file: Path) -> Iterator[str]:
    """The ``host:port`` of a server that gives a recording's pages in order, one for each time that it is asked, and
    then the last one for ever."""
    pages = load(file)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.pop(0) if len(pages) > 1 else pages[0]
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_arguments: object) -> None:
            """Nothing: Prometheus asks every second."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
