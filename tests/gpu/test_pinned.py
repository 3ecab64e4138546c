"""Workers' shared memory beside a GPU: pinned, copied from, and let go once no copy of it is pending."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opara_client import OparaClient, OparaError
from opara_server.engine.build import compile_model
from opara_server.engine.device import Device, Pin, Pinner
from opara_server.engine.errors import DeviceError
from opara_server.engine.options import BuildOptions
from opara_server.workers.link import link
from opara_server.workers.region import attach, create
from tests.e2e.server_process import running
from tests.e2e.test_workers import children, eventually
from tests.serving.fakes import wait_for
from tests.workers.test_line import NAME, Way
from tests.workers.test_pinned import LANES, WIDE, answered, close, wide

MIB = 1 << 20
PART = 16 * MIB
LONG = 2_000_000_000  # cycles of a multiprocessor: about a second


@pytest.fixture
def places() -> memoryview:
    found = attach(descriptor := create()).places
    os.close(descriptor)
    return found


def test_what_is_pinned_is_copied_from_where_it_lies(device: Device, places: memoryview) -> None:
    memory = places[:PART]
    assert device.pinned(memory) is None
    assert device.pinner is not None
    with closing(device.pinner(memory)):
        rows = device.pinned(memory[MIB : 3 * MIB])
        assert rows is not None
        assert device.pinned(places[PART - 4096 : PART + 4096]) is None
        assert device.pinned(places[PART : PART + 4096]) is None
        values = torch.randint(256, rows.shape, dtype=torch.uint8)
        rows.copy_(values)
        queue, target = device.beside(), torch.zeros(rows.shape, dtype=torch.uint8, device="cuda")
        assert queue is not None
        torch.cuda.synchronize()
        with queue.entered():
            torch.cuda._sleep(LONG)
            torch._foreach_copy_([target], [rows], non_blocking=True)
            assert not torch.cuda.current_stream().query(), "the copy was waited for"
            device.synchronize()
        assert torch.equal(target.cpu(), values)
    assert device.pinned(memory) is None
    device.pinner(memory).close()


def test_a_refusal_is_an_error_and_leaves_no_other(device: Device, places: memoryview) -> None:
    assert device.pinner is not None
    pin = device.pinner(places[:PART])
    with pytest.raises(DeviceError, match="CUDA"):
        device.pinner(places[:PART])
    assert float(torch.ones(8, device="cuda").sum()) == 8.0
    pin.close()
    with pytest.raises(DeviceError, match="CUDA"):
        pin.close()
    assert float(torch.ones(8, device="cuda").sum()) == 8.0


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Watch:
    """A pinner that notes in ``pending``, of each pin that is closed, whether any of ``queues`` was busy then."""

    def __init__(self, pinner: Pinner) -> None:
        self.pending: list[bool] = []
        self.queues: list[Any] = []
        self._pinner = pinner

    def __call__(self, memory: memoryview) -> Watched:
        return Watched(self, self._pinner(memory))


class Watched:
    def __init__(self, watch: Watch, pin: Pin) -> None:
        self._watch, self._pin = watch, pin

    def close(self) -> None:
        self._watch.pending.append(not all(queue.stream.query() for queue in self._watch.queues))
        self._pin.close()


@pytest.fixture
def way(tmp_path: Path) -> Iterator[Way]:
    options = BuildOptions((1, 4), policy="sequential", lowering="aten")
    compiled: Any = compile_model(NAME, Double().eval(), (WIDE,), "cuda", options)
    compiled.device.pinner = Watch(compiled.device.pinner)
    made = Way(tmp_path, compiled, LANES)
    yield made
    made.close()


def test_a_killed_workers_memory_stays_until_it_has_been_copied(way: Way) -> None:
    """Its requests are behind a second of other work on the queues that copy. Other workers are served as ever."""
    executor, worker = way.server.executor, way.server.registry._loaded[NAME].worker
    lanes, watch = list(worker.lanes._free), cast("Watch", way.compiled.device.pinner)

    def delay() -> None:
        for lane in lanes:
            assert lane._into is not None
            watch.queues.append(lane._into)
            with lane._into.entered():
                torch.cuda._sleep(LONG)

    def arrived() -> set[float]:
        return {float(lane._arrived[0].buffer.view(torch.float32)[0]) for lane in lanes}

    assert answered(way.ask(wide(1.0)), 1.0)
    (line,) = way.desk._lines.values()
    executor.run(delay).result(60)
    for value, free in ((2.0, 1), (3.0, 0)):
        way.ask(wide(value))
        wait_for(lambda free=free: len(worker.lanes._free) == free)  # type: ignore[misc]  # it is begun
    os.dup2(os.open(os.devnull, os.O_WRONLY), way.ends[1].submissions)  # as the kernel does when a process ends
    wait_for(lambda: not line._up)
    wait_for(lambda: len(watch.pending) == 1)
    assert watch.pending == [False]
    assert executor.run(arrived).result(60) == {2.0, 3.0}
    way.connect(others := link())
    for _ in range(20):
        asked = [(value, way.ask(wide(value, 1 + value % 4))) for value in range(4, 24)]
        assert all(answered(answer, value) for value, answer in asked)
    close(*others)


IMAGE = (3, 224, 224)
SMALL = f"""
source = "python:tests.e2e.nets:Small"
batch_sizes = [1, 8]
policy = "sequential"
lowering = "aten"
device = "cuda"

[[inputs]]
name = "x"
dtype = "float32"
shape = {list(IMAGE)}
"""
CALLERS = 8


def test_a_server_pins_what_its_workers_share_and_survives_them(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "small"
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(SMALL)
    over, wrong, right = threading.Event(), [0] * CALLERS, [0] * CALLERS

    def call(address: str, number: int) -> None:
        value = 1000.0 * number
        with OparaClient(address) as client:
            while not over.is_set():
                value += 1
                try:
                    answer = client.infer("small", {"x": np.full((1, *IMAGE), value, np.float32)})
                except OparaError:  # its worker was killed
                    continue
                (found,) = answer.outputs.values()
                right[number] += bool((found == value + 1).all())
                wrong[number] += bool((found != value + 1).any())

    with running(tmp_path / "models", "--workers=2") as server:
        callers = [threading.Thread(target=call, args=(server.grpc, number)) for number in range(CALLERS)]
        for caller in callers:
            caller.start()
        for enough in (200, 400, 600):
            eventually(lambda enough=enough: sum(right) >= enough)  # type: ignore[misc]
            os.kill(children(server, "worker")[0], signal.SIGKILL)
            eventually(lambda: len(children(server, "worker")) == 2)
        over.set()
        for caller in callers:
            caller.join()
        log = tmp_path / "server.log"
        eventually(lambda: log.read_text().count("memory shared with a worker is pinned") == 5)
        assert server.stop() == 0
    assert sum(wrong) == 0
    assert "cannot be" not in log.read_text()
