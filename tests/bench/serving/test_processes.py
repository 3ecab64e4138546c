from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from bench.serving.process import COMMON, Launch, ServerError, started
from bench.serving.processes import Status, all_processes, parse_status, tree

TICK_S = 2 / os.sysconf("SC_CLK_TCK")  # of user and of system time
STAT = "4711 (a (strange) name) S 4710 4709 4708 0 -1 4194560 99 0 0 0 250 50 7 8 20 0 1 0 123456 1 2 3"


def test_a_stat_line_is_read_whatever_the_name() -> None:
    status = parse_status(STAT)
    assert status == Status(4711, "S", 4710, 4708, status.cpu_s, 123456)
    assert status.cpu_s == pytest.approx(300 / os.sysconf("SC_CLK_TCK"))


def test_our_own_process_is_found() -> None:
    before = time.process_time()
    own = next(status for status in all_processes() if status.pid == os.getpid())
    assert own.parent == os.getppid()
    assert before - TICK_S < own.cpu_s < time.process_time() + TICK_S


def process(pid: int, parent: int, session: int, state: str = "S") -> Status:
    return Status(pid, state, parent, session, 0.0, 0)


def test_a_tree_is_the_session_and_all_descendants() -> None:
    leader = process(10, 1, 10)
    child, grandchild = process(11, 10, 10), process(12, 11, 12)  # the grandchild has a session of its own
    orphan = process(13, 1, 10)
    others = [process(1, 0, 1), process(20, 1, 20), process(14, 10, 10, state="Z")]
    assert tree(10, [grandchild, *others, orphan, child, leader]) == [grandchild, orphan, child, leader]


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) > 1:
    subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
print("READY", flush=True)
time.sleep(60)
"""


def run(launch: Launch, folder: Path) -> set[tuple[int, int]]:
    """Start, wait, stop; the identities of the processes that there were."""
    with started(launch, sorted(os.sched_getaffinity(0))[:1], folder / "log") as server:
        server.wait_for_ready_line(time.monotonic() + 60)
        return {status.identity for status in server.processes()}


def test_nothing_is_left_even_of_a_stubborn_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.serving.process.STOP_TIMEOUT_S", 0.2)
    were = run(Launch((sys.executable, "-c", STUBBORN, STUBBORN), ready="READY"), tmp_path)
    assert len(were) == 2
    assert not were & {status.identity for status in all_processes() if status.state != "Z"}


PATIENT = """
import signal, sys, time
signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
print("READY", flush=True)
while not signals:
    time.sleep(0.01)
time.sleep(0.2)
print("SIGNALS", len(signals), flush=True)
"""


def test_a_server_is_told_once(tmp_path: Path) -> None:
    launch = Launch((sys.executable, "-c", PATIENT), ready="READY")
    with started(launch, os.sched_getaffinity(0), tmp_path / "log") as server:
        server.wait_for_ready_line(time.monotonic() + 60)
        server.terminate()
    assert "SIGNALS 1" in (tmp_path / "log").read_text()


def test_a_server_gets_its_cores_and_the_common_environment(tmp_path: Path) -> None:
    code = "import os; print('READY', sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'], os.environ['A'])"
    run(Launch((sys.executable, "-c", f"{code}\nimport time; time.sleep(60)"), {"A": "b"}, "READY"), tmp_path)
    core = min(os.sched_getaffinity(0))
    assert (tmp_path / "log").read_text().split(" ", 1)[1] == f"[{core}] {COMMON['OMP_NUM_THREADS']} b\n"


def test_a_server_that_ends_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"exit status 3(.|\n)*no such model"):
        run(Launch((sys.executable, "-c", "print('no such model'); raise SystemExit(3)"), {}, "READY"), tmp_path)
