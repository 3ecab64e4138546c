"""What the supervisor makes of its children."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from opara_server.workers.supervisor import Supervisor
from tests.rpc.served import config, eventually, write_model

TOML = """
source = "python:torch.nn:Identity"
batch_sizes = [1]
policy = "sequential"
device = "cpu"

[[inputs]]
name = "x"
dtype = "float32"
shape = [2]
"""


def test_a_worker_needs_no_torch() -> None:
    """It would start seconds later, and take memory for nothing."""
    modules = "opara_server.workers.child, opara_server.workers.worker_process, opara_server.workers.supervisor"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_an_engine_that_does_not_answer_is_replaced(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = config(write_model(tmp_path / "models", toml=TOML), workers=1)
    supervisor = Supervisor(settings, 0, lambda _what, _share: None, ask_every_s=0.1, answer_within_s=1.0)
    running = asyncio.create_task(supervisor.run())
    await eventually(lambda: supervisor.ready)
    assert supervisor.engine is not None
    first = supervisor.engine.pid
    os.kill(first, signal.SIGSTOP)
    await eventually(lambda: supervisor.ready and supervisor.engine and supervisor.engine.pid != first)
    supervisor.ask_to_stop()
    assert await running == 0
    assert capfd.readouterr().out.count("READY grpc=") == 1
