from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from bench.serving import h2load

OUTPUT = """\
starting benchmark...
spawning thread #0: 4 total client(s). Timing-based test with 0s of warm-up time and 2s of main duration.
Application protocol: h2c

finished in 2.00s, 29472.00 req/s, 4.09MB/s
requests: 58944 total, 58976 started, 58944 done, 58943 succeeded, 1 failed, 2 errored, 3 timeout
status codes: 58943 2xx, 0 3xx, 0 4xx, 1 5xx
traffic: 8.18MB (8580363) total, 173.27KB (177432) headers (space savings 96.28%), 5.34MB (5599680) data
                     min         max         mean         sd        +/- sd
time for request:      126us     12.87ms      1.07ms      1.08ms    90.50%
"""


def test_its_report_is_read() -> None:
    assert h2load.parse(OUTPUT) == h2load.Report(29472.0, done=58944, ok=58943, bad=6, data_bytes=5599680)


def test_a_report_without_a_line_is_an_error_that_shows_it() -> None:
    with pytest.raises(h2load.H2LoadError, match=r"traffic(.|\n)*58976 started"):
        h2load.parse(OUTPUT.replace("traffic", "trouble"))


def test_messages_are_framed_as_grpc_has_it() -> None:
    assert h2load.framed(b"x" * 258) == b"\0" + bytes([0, 0, 1, 2]) + b"x" * 258


@pytest.mark.parametrize(("callers", "clients", "streams"), [(1, "1", "1"), (8, "8", "1"), (32, "8", "4")])
def test_callers_share_at_most_eight_connections(callers: int, clients: str, streams: str, tmp_path: Path) -> None:
    load = h2load.Load(50051, "/a.B/C", tmp_path / "body", callers, seconds=1.5, threads=2)
    command = h2load.command("/usr/bin/h2load", load, (2, 3), tmp_path / "log")
    options = dict(pairwise(command))
    assert command[:4] == ["taskset", "--cpu-list", "2,3", "/usr/bin/h2load"]
    assert (options["-c"], options["-m"], options["-D"]) == (clients, streams, "1500ms")
    assert int(options["-t"]) <= int(clients)  # h2load refuses more threads than connections
    assert command[-1] == "http://127.0.0.1:50051/a.B/C"
    assert "content-type: application/grpc" in command
    assert "te: trailers" in command


def test_a_server_of_many_processes_wants_more_connections(tmp_path: Path) -> None:
    load = h2load.Load(1, "/", tmp_path, callers=128, seconds=1.0, threads=16, connections=64)
    options = dict(pairwise(h2load.command("h2load", load, (0,), tmp_path)))
    assert (options["-c"], options["-m"], options["-t"]) == ("64", "2", "16")


def test_callers_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="9 callers"):
        h2load.command("h2load", h2load.Load(1, "/", tmp_path, 9, 1.0, 1), (0,), tmp_path)


def test_latencies_are_the_third_column(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("1795294965678896\t200\t3661\n1795294965678897\t200\t90\n")
    assert h2load.read_latencies(log).tolist() == [3661.0, 90.0]


def test_a_log_without_requests_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    with pytest.raises(h2load.H2LoadError, match="no request"):
        h2load.read_latencies(tmp_path / "log")


def test_without_the_program_one_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(h2load.H2LoadError, match="nghttp2-client"):
        h2load.find()
