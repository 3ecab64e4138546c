"""Tensors are found wherever they are, and nowhere else; a short look at real servers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.copies.__main__ import WAYS, Way, look
from bench.copies.marking import BLOCK, Places, marked, places
from bench.copies.page import Found, Left, Process, report

HOLDER = """
import mmap, os, sys
def read(where, path):
    with open(path, "rb", buffering=0) as file:
        file.readinto(where)
    return where
given, negative = sys.argv[1:]
size = os.path.getsize(given)
fd = os.memfd_create("opara-worker")
os.ftruncate(fd, 16 * size)
held = [read(mmap.mmap(-1, size), path) for path in (given, given, given, negative)]
held.append(read(memoryview(mmap.mmap(fd, 16 * size))[4 * size:5 * size], negative))
print(flush=True)
sys.stdin.read()
"""


def test_a_tensor_is_found_wherever_a_process_has_it(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensor, other = marked(8 * BLOCK, random), marked(8 * BLOCK, random)
    tensor.tofile(tmp_path / "given")
    (-tensor).tofile(tmp_path / "negative")
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "given"), str(tmp_path / "negative")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == b"\n"
        assert places(holder.pid, tensor) == Places(own=3.0, shared=0.0)
        assert places(holder.pid, -tensor) == Places(own=1.0, shared=1.0)
        assert places(holder.pid, other) == Places(own=0.0, shared=0.0)
        holder.stdin.close()


@pytest.mark.parametrize(
    ("way", "roles"), [(WAYS[0], ["server"]), (WAYS[1], ["server"]), (WAYS[4], ["engine", "worker"])]
)
def test_a_short_look_finds_a_request_where_it_must_be(way: Way, roles: list[str]) -> None:
    found = look(way, requests=20)
    by_role = {process.role: process for process in found.processes}
    assert sorted(by_role) == roles
    assert all(0.5 < process.request < 8.0 for role, process in by_role.items() if role != "worker")
    assert all(process.left.collections >= 0 for process in by_role.values())
    if "worker" in roles:
        assert 0.5 < by_role["engine"].shared_answer <= 1.0


def test_every_process_has_a_line_in_both_tables() -> None:
    left = Left(0.5, -12.0, 0.0, 0.0, 2.0)
    processes = (Process("engine", 1.0, 1.0, 0.0, 1.0, left), Process("worker", 3.0, 2.0, 0.0, 1.0, left))
    told = {"cpu": "a processor", "python": "3", "torch": "2"}
    page = report([Found("one worker", "oip", 100, processes)], told, 1000, 10)
    assert "| one worker | oip | worker | 3.00 | 2.00 | 0.00 | 1.00 |" in page
    assert "| one worker | oip | engine | 0.5 | -12 | 0 | 0 | 2 |" in page
