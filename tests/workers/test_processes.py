"""What the supervisor makes of its children."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from opara_server.workers import worker_process
from opara_server.workers.child import ENGINE, WORKER, Orders
from opara_server.workers.link import link
from opara_server.workers.messages import Messages
from opara_server.workers.process import Process
from tests.rpc.served import PATIENCE_S, config, eventually, write_model
from tests.workers.told import Told

LONG_S = 240.0  # a child is killed after that, or imports torch in it
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


@pytest.mark.parametrize("engine_lives", [True, False])
async def test_a_worker_listens_once_it_knows_what_there_is(tmp_path: Path, engine_lives: bool) -> None:
    settings = config(write_model(tmp_path / "models", toml=TOML), workers=1)
    (engine, end), orders, told = link(), Orders(), Told()
    for said, descriptors in (({"do": "attach"}, end.descriptors), ({"do": "listen", "limit": 1 << 20}, ())):
        orders.put_nowait((said, descriptors))
    serving = asyncio.create_task(worker_process.serve(settings, told, orders))
    listening = asyncio.create_task(told.said.get())
    await asyncio.wait((listening, serving), timeout=0.2)
    assert not listening.done()
    messages = await Messages.open(engine.messages)
    if engine_lives:
        messages.send({"health": {}, "models": {}})
    else:
        messages.close()
    assert await asyncio.wait_for(listening, PATIENCE_S) == {"listening": True}
    messages.close()
    orders.put_nowait(({"do": "stop"}, ()))
    assert await serving == 0
    for descriptor in (engine.memory, engine.submissions, engine.completions):
        os.close(descriptor)


async def test_ctrl_c_reaches_the_supervisor_alone(tmp_path: Path) -> None:
    """A terminal tells it to the supervisor's process group. A child that is just importing would die of it."""
    child = await Process.start(WORKER, config(tmp_path, workers=1), lambda _said: None)
    group = os.getpgid(child.pid)
    child.kill()
    await child.ended()
    assert group == child.pid


async def test_a_child_that_is_still_importing_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importing = tmp_path / "importing"
    endless = f"import pathlib, time\npathlib.Path({str(importing)!r}).touch()\nwhile True: time.sleep(1)"
    (tmp_path / "torch.py").write_text(endless)
    monkeypatch.syspath_prepend(tmp_path)  # for the child, which gets this process's path
    child = await Process.start(ENGINE, config(tmp_path, workers=1), lambda _said: None)
    await eventually(importing.exists)
    ended = asyncio.create_task(child.ended())
    await child.end(LONG_S)
    assert await ended == -signal.SIGTERM


async def test_a_child_that_has_begun_ends_as_it_is_told(tmp_path: Path) -> None:
    told: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
    settings = config(write_model(tmp_path / "models", toml=TOML), workers=1)
    child = await Process.start(ENGINE, settings, told.put_nowait)
    assert "limit" in await asyncio.wait_for(told.get(), LONG_S)
    ended = asyncio.create_task(child.ended())
    await child.end(LONG_S)
    assert await ended == 0


async def test_an_engine_says_that_it_lives_when_it_is_asked(tmp_path: Path) -> None:
    said = asyncio.Queue[Mapping[str, Any]]()
    engine = await Process.start(ENGINE, config(write_model(tmp_path / "models", toml=TOML)), said.put_nowait)

    async def says(what: str) -> None:
        async with asyncio.timeout(LONG_S):
            while what not in await said.get():
                pass

    await says("ready")
    engine.ask()
    engine.ask()
    assert engine.unanswered == 2
    async with asyncio.timeout(LONG_S):
        while engine.unanswered:
            await asyncio.sleep(0.01)
    engine.tell({"do": "stop"})
    assert await engine.ended() == 0
