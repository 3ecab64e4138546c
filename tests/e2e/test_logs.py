"""What a real server writes to stderr, where its log is to be JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server_process import run, running


def lines(text: str) -> list[dict[str, Any]]:
    """Each line is an object."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in found)
    return found


@pytest.mark.parametrize("workers", [0, 1])
def test_every_line_is_json_whoever_has_written_it(small: Path, workers: int) -> None:
    toml = small / "small" / "model.toml"
    toml.write_text(toml.read_text().replace(":Small", ":noisy"))
    with running(small, "--log-format=json", f"--workers={workers}") as server:
        assert server.stop() == 0
    said = lines((small.parent / "server.log").read_text())
    levels = {line["message"]: line["level"] for line in said}
    assert levels["UserWarning: the model\nwarns"] == levels["torch says so"] == "warning"
    assert levels["nobody has caught an exception"] == "error"
    (fault,) = [line["exception"] for line in said if line["message"] == "nobody has caught an exception"]
    assert fault.endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize("workers", [0, 1])
def test_so_is_the_line_that_says_why_it_ends(small: Path, workers: int) -> None:
    (small / "small" / "model.toml").write_text("source = ")
    options = ("--strict", "--port=0", "--metrics-port=0", "--log-format=json", f"--workers={workers}")
    ended = run("serve", f"--models={small}", *options, cwd=small)
    assert (ended.returncode, ended.stdout) == (1, "")
    last = lines(ended.stderr)[-1]
    assert last["level"] == "critical"
    assert last["message"].startswith("model small: ")
