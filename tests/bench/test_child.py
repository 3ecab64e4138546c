"""The process of a cell group: it waits for its turn, and is ended in time with all that it started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.child import READY, Child, Job
from tests.bench.scripts import SCRIPTED, script


def child(tmp_path: Path, code: str) -> Child:
    return Child(script(tmp_path, code), tmp_path / "log")


def test_it_measures_when_it_is_told_to(tmp_path: Path) -> None:
    code = f"print('compiled'); print({READY!r}, flush=True); input(); open('{tmp_path}/done', 'w')"
    running = child(tmp_path, code)
    assert running.wait_until_ready()
    assert not (tmp_path / "done").exists()
    assert running.measure() == ""
    assert (tmp_path / "done").exists()
    running.close()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(3)", "exit status 3"),
        ("raise ValueError('no such thing')", "exit status 1: ValueError: no such thing"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
    ],
)
def test_it_tells_why_it_failed(tmp_path: Path, code: str, reason: str) -> None:
    running = child(tmp_path, code)
    assert not running.wait_until_ready()
    assert running.measure() == reason
    running.close()


def test_time_is_up(tmp_path: Path) -> None:
    running = child(tmp_path, "import time; time.sleep(60)")
    running.limit(0.05)
    assert not running.wait_until_ready()
    assert running.measure() == "cut off: out of time"
    assert running.timed_out
    running.close()


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"print(worker.pid); print({READY!r}, flush=True); worker.wait()"
    )
    running = child(tmp_path, code)
    assert running.wait_until_ready()
    running.close()  # would not return while the worker held the pipe open


def test_compilers_share_the_processors(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    job = Job(SCRIPTED, ("ours", "eager"), "cuda", tmp_path, cache, 0.3, 0.2, 60.0, True, 5, "2", 12.5)
    environment = job.environment()
    assert environment["TORCHINDUCTOR_COMPILE_THREADS"] == environment["OMP_NUM_THREADS"] == "5"
    assert replace(job, threads=1).environment()["TORCHINDUCTOR_COMPILE_THREADS"] == "4"
    assert environment["CUDA_VISIBLE_DEVICES"] == "2"
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == str(cache)
    command = job.command()
    assert command[1:6] == ["-m", "bench.cell", "some", "float32", "1"]
    assert command[command.index("--systems") + 1] == "ours,eager"
    assert command[command.index("--compile-until") + 1] == "12.5"
    assert "--studies" in command
    assert "--compile-until" not in replace(job, compile_until=None).command()


def test_without_a_gpu_of_its_own_it_sees_what_others_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert script(tmp_path, "").environment()["CUDA_VISIBLE_DEVICES"] == "7"


def test_a_later_limit_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    running = child(tmp_path, f"print({READY!r}, flush=True); input(); import time; time.sleep(60)")
    running.limit(0.0)
    running.limit(None)
    running.limit(0.2)
    running.measure()
    assert running.timed_out
    running.close()
