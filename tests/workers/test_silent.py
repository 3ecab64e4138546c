"""Processes that live but do nothing: they are asked, and replaced when they do not answer. No test knows the time."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc
import pytest

from opara_protos.v1.inference_pb2_grpc import InferenceServiceStub
from opara_server.workers import worker_process
from opara_server.workers.child import Orders
from opara_server.workers.link import link
from opara_server.workers.messages import Messages
from opara_server.workers.process import Process
from opara_server.workers.supervisor import _MOST_UNANSWERED, Supervisor, _reserved
from tests.rpc.served import MODEL, PATIENCE_S, config, doubled, eventually, request, write_model
from tests.workers.told import Told

if TYPE_CHECKING:
    from opara_protos.v1.inference_pb2_grpc import InferenceServiceAsyncStub

LONG_S = 240.0  # a process imports torch in it
TOGETHER = 24
# Requests wait until there are so many rows, however long that takes.
PATIENT_TOML = f"""
source = "python:torch.nn:Identity"
batch_sizes = [{TOGETHER}]
policy = "sequential"
device = "cpu"

[[inputs]]
name = "x"
dtype = "float32"
shape = [2]

[batching]
max_queue_delay_us = 3_600_000_000
"""


class Clock:
    """It is time for the next questions when a test says so."""

    def __init__(self) -> None:
        self._waits = 0
        self._times = asyncio.Semaphore(0)

    async def next_time(self) -> None:
        self._waits += 1
        await self._times.acquire()

    async def strike(self) -> None:
        """Returns once all questions have been asked."""
        waits = self._waits
        self._times.release()
        await until(lambda: self._waits > waits)


class Running:
    """A supervisor in this process, with real children."""

    def __init__(self, supervisor: Supervisor, clock: Clock, grpc_address: str, metrics_address: str) -> None:
        self.supervisor, self.clock = supervisor, clock
        self.grpc_address, self._metrics_address = grpc_address, metrics_address

    async def sample(self, line: str) -> float:
        """Of the metrics: 0 where there is none such yet."""
        page = await asyncio.to_thread(_read, f"http://{self._metrics_address}/metrics")
        found = [row for row in page.splitlines() if row.startswith(f"{line} ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    async def waiting(self) -> float:
        """Rows in the queue."""
        return await self.sample(f'opara_queue_depth_rows{{model="{MODEL}"}}')

    def pids(self) -> list[int]:
        """The engine's, then the workers'."""
        engine = self.supervisor.engine
        return [engine.pid if engine else 0, *(worker.pid for _, worker in sorted(self.supervisor._workers.items()))]

    def whole(self) -> bool:
        """Whether everybody serves."""
        supervisor = self.supervisor
        return supervisor.ready and len(supervisor._listening) == len(supervisor._workers) == supervisor._config.workers

    async def ask_in_vain(self, silent: int) -> None:
        """As often as it takes until a process is given up that does not answer, when the others do each time."""
        for _ in range(_MOST_UNANSWERED):
            await self.clock.strike()
            await until(lambda: all(not p.unanswered for p in self._processes() if p.pid != silent))
            assert silent in self.pids()
        await self.clock.strike()
        await until(lambda: silent not in self.pids())

    def _processes(self) -> list[Process]:
        supervisor = self.supervisor
        return [process for process in (supervisor.engine, *supervisor._workers.values()) if process]


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as page:
        text: str = page.read().decode()
        return text


async def until(condition: Callable[[], object]) -> None:
    """Processes may have to be started for it."""
    async with asyncio.timeout(LONG_S):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(folder: Path, capfd: pytest.CaptureFixture[str], workers: int) -> AsyncIterator[Running]:
    settings = config(write_model(folder / "models", toml=PATIENT_TOML), workers=workers)
    clock, said = Clock(), ""
    with _reserved(settings) as reserved:
        port = reserved.getsockname()[1]
        supervisor = Supervisor(settings, port, lambda _what, _share: None, next_time=clock.next_time)
        task = asyncio.create_task(supervisor.run())

        def found() -> re.Match[str] | None:
            nonlocal said
            said += capfd.readouterr().out
            return re.search(r"READY grpc=(\S+) metrics=(\S+)\n", said)

        await until(lambda: task.done() or found())
        ready = found()
        assert ready
        yield Running(supervisor, clock, *ready.groups())
        supervisor.ask_to_stop()
        assert await task == 0
        assert (said + capfd.readouterr().out).count("READY grpc=") == 1


async def test_a_worker_that_stands_still_is_replaced_with_the_loss_of_its_own_requests_only(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, capfd, workers=2) as server:
        calls = [asyncio.create_task(ask(server.grpc_address, number)) for number in range(TOGETHER - 1)]
        while await server.waiting() < TOGETHER - 1:
            await asyncio.sleep(0.01)
        engine, silent, other = server.pids()
        between = pipes(engine) & pipes(silent) - pipes(os.getpid())
        assert len(between) == 2
        os.kill(silent, signal.SIGSTOP)
        await server.ask_in_vain(silent)
        await until(server.whole)
        assert server.pids()[0] == engine
        assert server.pids()[2] == other
        assert "worker 0 does not answer: it is killed" in caplog.text
        assert await server.sample('opara_workers_replaced_total{cause="silent"}') == 1
        assert await server.sample('opara_workers_replaced_total{cause="ended"}') == 0
        await until(lambda: not between & pipes(engine))  # the engine has hung up, and cancelled what it had
        left = await server.waiting()
        await until(lambda: sum(not call.done() for call in calls) == left)
        assert all(call.result() is grpc.StatusCode.UNAVAILABLE for call in calls if call.done())
        waiting = [call for call in calls if not call.done()]
        waiting += [asyncio.create_task(ask(server.grpc_address, -1)) for _ in range(TOGETHER - len(waiting))]
        assert await asyncio.gather(*waiting) == [True] * TOGETHER


def pipes(pid: int) -> set[str]:
    """That the process has open."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(str(descriptor.readlink()))
    return {name for name in found if name.startswith("pipe:")}


async def ask(address: str, number: float) -> bool | grpc.StatusCode:
    """Over a connection of its own, which the kernel gives to any worker. Whether the answer is right, or the code."""
    async with grpc.aio.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),)) as channel:
        stub = cast("InferenceServiceAsyncStub", InferenceServiceStub(channel))
        try:
            return doubled(await stub.Infer(request(number), wait_for_ready=True)) == [number]
        except grpc.aio.AioRpcError as error:
            return error.code()


async def test_an_engine_that_does_not_answer_is_replaced(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with running(tmp_path, capfd, workers=1) as server:
        engine, worker = server.pids()
        os.kill(engine, signal.SIGSTOP)
        await server.ask_in_vain(engine)
        await until(server.whole)
        assert server.pids()[1] == worker


async def test_a_worker_whose_calls_stand_still_does_not_say_that_it_lives(tmp_path: Path) -> None:
    """Its event loop does, but the thread that serves waits where it should never have to: for room in a pipe."""
    settings = config(write_model(tmp_path / "models", toml=PATIENT_TOML), workers=1)
    (engine, end), orders, told = link(), Orders(), Told()
    pipe = os.dup(end.submissions)
    with _reserved(settings) as reserved:
        port = reserved.getsockname()[1]
        for said, descriptors in (({"do": "attach"}, end.descriptors), ({"do": "listen", "limit": 1 << 20}, ())):
            orders.put_nowait((said, descriptors))
        serving = asyncio.create_task(worker_process.serve(settings.model_copy(update={"port": port}), told, orders))
        messages = await Messages.open(engine.messages)
        spec = ["x", "float32", [2], None, None]
        known = {"state": "READY", "row": 1, "number": 0, "inputs": [spec], "outputs": [spec], "max_rows": 1}
        messages.send({"health": {}, "models": {MODEL: known}})
        assert await asyncio.wait_for(told.said.get(), PATIENCE_S) == {"listening": True}

        async def says_that_it_lives() -> bool:
            orders.put_nowait(({"do": "answer"}, ()))
            await eventually(orders.empty)  # it is done then, too: nothing is waited for meanwhile
            answered = not told.said.empty()
            while not told.said.empty():
                told.said.get_nowait()
            return answered

        assert await says_that_it_lives()
        fill(pipe)
        call = asyncio.create_task(ask(f"127.0.0.1:{port}", 1.0))
        in_vain = 0
        async with asyncio.timeout(PATIENCE_S):
            while in_vain < 2 * _MOST_UNANSWERED:
                in_vain = 0 if await says_that_it_lives() else in_vain + 1
                await asyncio.sleep(0.01)
        os.read(engine.submissions, 1 << 16)
        async with asyncio.timeout(PATIENCE_S):
            while not await says_that_it_lives():
                await asyncio.sleep(0.01)
        messages.close()
        for descriptor in (engine.memory, engine.submissions, engine.completions, pipe):
            os.close(descriptor)
        assert await call is grpc.StatusCode.UNAVAILABLE  # its engine is gone
        orders.put_nowait(({"do": "stop"}, ()))
        assert await serving == 0


def fill(pipe: int) -> None:
    """As much as there is room for."""
    os.set_blocking(pipe, False)
    with suppress(BlockingIOError):
        while True:
            os.write(pipe, bytes(1))
    os.set_blocking(pipe, True)
