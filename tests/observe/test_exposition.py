"""The metrics port takes GETs, of a few clients at a time, and tells nothing of what goes wrong inside."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection

import pytest
from prometheus_client import CollectorRegistry, Gauge

from opara_server.observe.exposition import AT_ONCE, Content, Exposition
from opara_server.observe.tallies import DistributionFamily

PATIENCE_S = 60.0
LONGEST_LINE = 65_536  # of http.server


def echo(query: Mapping[str, str]) -> Content | None:
    if query.get("fail"):
        raise RuntimeError("secret in /etc/passwd")
    return Content("text/x-test", query["say"].encode(), (("X-Own", "1"),)) if "say" in query else None


@pytest.fixture
def port() -> Iterator[int]:
    registry = CollectorRegistry()
    Gauge("answer", "Of all.", registry=registry).set(42)
    exposition = Exposition("127.0.0.1", 0, registry, {"/echo": echo})
    yield exposition.port
    exposition.stop()


def ask(
    port: int, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode()


def test_metrics_and_pages_and_nothing_else(port: int) -> None:
    status, _, text = ask(port, "/metrics")
    assert (status, "answer 42.0\n" in text) == (200, True)
    status, headers, text = ask(port, "/echo?say=a%20b&more=1")
    assert (status, text, headers["Content-Type"], headers["X-Own"]) == (200, "a b", "text/x-test", "1")
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
    for path in ("/", "/echo", "/metrics/", "/../etc/passwd", "//", "/echo/"):
        assert ask(port, path)[::2] == (404, "Not Found\n")


def test_exemplars_are_for_those_that_ask_for_openmetrics() -> None:
    registry = CollectorRegistry()
    seconds = DistributionFamily("seconds", "How long.", ["model"], (0.1, 1.0), registry)
    seconds.labels("m").observe(0.5)
    seconds.labels("m").exemplify(0.5, 0xABC, at=12.0)
    exposition = Exposition("127.0.0.1", 0, registry, {})
    _, plain, text = ask(exposition.port, "/metrics")
    assert (plain["Content-Type"].partition(";")[0], "# {" in text) == ("text/plain", False)
    _, asked, text = ask(exposition.port, "/metrics", Accept="application/openmetrics-text;version=1.0.0")
    exposition.stop()
    assert asked["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert f'seconds_bucket{{le="1.0",model="m"}} 1.0 # {{trace_id="{0xABC:032x}"}} 0.5 12.0\n' in text
    assert text.count("trace_id") == 1
    assert text.endswith("# EOF\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_can_be_changed(port: int, method: str) -> None:
    for path in ("/metrics", "/echo?say=a"):
        status, headers, _ = ask(port, path, method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_a_head_is_an_answer_without_its_body(port: int) -> None:
    assert ask(port, "/metrics", "HEAD")[::2] == (200, "")
    status, headers, text = ask(port, "/echo?say=abc", "HEAD")
    assert (status, headers["Content-Length"], text) == (200, "3", "")


def test_versions_that_nobody_knows_are_no_crash(
    port: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    for accepted in ("text/plain; version=x.y", "application/openmetrics-text; version=latest"):
        assert ask(port, "/metrics", Accept=accepted)[::2] == (500, "Internal Server Error\n")
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2
    assert "Traceback" not in capfd.readouterr().err  # what the log does not write
    assert ask(port, "/metrics", Accept=";;,=")[0] == 200


def test_what_fails_inside_stays_inside(port: int, caplog: pytest.LogCaptureFixture) -> None:
    assert ask(port, "/echo?fail=1")[::2] == (500, "Internal Server Error\n")
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert ask(port, "/echo?say=still")[2] == "still"


def test_clients_that_say_nothing_do_not_keep_others_out_and_are_a_bounded_number(port: int) -> None:
    silent = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) for _ in range(AT_ONCE)]
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as beyond:
        assert beyond.recv(1) == b""  # closed at once
    silent.pop().close()
    end = time.monotonic() + PATIENCE_S
    while not let_in(port):  # until it has seen that one is gone
        assert time.monotonic() < end, "nobody is let in any more"
    for client in silent:
        client.close()


def let_in(port: int) -> bool:
    try:
        return ask(port, "/echo?say=1")[0] == 200
    except OSError:
        return False


def test_a_line_without_an_end_is_refused(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
        client.sendall(b"GET /".ljust(LONGEST_LINE + 1, b"a"))  # all of which is read: else the answer might be lost
        assert b" 414 " in client.recv(100)
