"""Workers' memory that a device copies from by itself: it stays, and stays theirs, until such a copy has ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from opara_server.engine.errors import DeviceError
from opara_server.engine.spec import TensorSpec
from opara_server.serving.batcher import Rows
from opara_server.serving.errors import Cancelled
from opara_server.serving.lanes import DIRECT_BYTES
from opara_server.workers.link import End, link
from opara_server.workers.region import PINNED_BYTES
from tests.serving.fakes import PATIENCE_S, Answer, FakeCompiled, wait_for
from tests.serving.queued import QueuedDevice
from tests.workers.test_line import NAME, TOML, Way

WIDE = TensorSpec("x", "float32", (DIRECT_BYTES // 4,))
LANES = TOML + "lanes = 2\n"


class FakePin:
    def __init__(self, device: PinningDevice, memory: memoryview) -> None:
        self.memory = torch.frombuffer(memory, dtype=torch.uint8)
        self._device = device

    def has(self, tensor: torch.Tensor) -> bool:
        begin = tensor.data_ptr() - self.memory.data_ptr()
        return begin >= 0 and begin + tensor.nbytes <= self.memory.nbytes

    def close(self) -> None:
        self._device.closed.append(self._device.begun - len(self._device.copied))
        self._device.live.remove(self)  # last: tests wait for it


class PinningDevice(QueuedDevice):
    """``live``: what is pinned. ``closed``: of each that was, how many copies were pending then. ``direct``: requests
    that were copied from where they lay, and answers that were copied to where they belong."""

    def __init__(self) -> None:
        super().__init__()
        self.live: list[FakePin] = []
        self.closed: list[int] = []
        self.direct = 0
        self.refusal: DeviceError | None = None
        self.pinner = self._pin

    def _pin(self, memory: memoryview) -> FakePin:
        if self.refusal is not None:
            raise self.refusal
        self.live.append(FakePin(self, memory))
        return self.live[-1]

    def pinned(self, memory: bytes | memoryview) -> torch.Tensor | None:
        tensor = torch.frombuffer(memory, dtype=torch.uint8)
        if not any(pin.has(tensor) for pin in self.live):
            return None
        self.direct += 1
        return tensor


@pytest.fixture
def device() -> Iterator[PinningDevice]:
    device = PinningDevice()
    yield device
    device.close()


@pytest.fixture
def way(tmp_path: Path, device: PinningDevice) -> Iterator[Way]:
    made = Way(tmp_path, FakeCompiled(NAME, (1, 4), inputs=(WIDE,), outputs=(WIDE,), device=device), LANES)
    yield made
    device.copying.set()
    made.close()


def wide(value: float, count: int = 1) -> Rows:
    return Rows((np.full((count, *WIDE.shape), value, np.float32).tobytes(),), count)


def answered(answer: Answer, value: float) -> bool:
    return bool((answer.array() == 2 * value).all())


def close(*ends: End) -> None:
    for end in ends:
        os.close(end.messages)
        os.close(end.memory)


def test_large_requests_are_copied_from_where_they_lie(way: Way, device: PinningDevice) -> None:
    wait_for(lambda: len(device.live) == 1)
    assert device.live[0].memory.nbytes == PINNED_BYTES
    asked = [(value, way.ask(wide(value, 1 + value % 4))) for value in range(1, 21)]
    assert all(answered(answer, value) for value, answer in asked)
    assert device.direct == 2 * len(asked)


def test_of_a_request_that_is_split_answers_are_joined(way: Way, device: PinningDevice) -> None:
    """The answer to its first rows would come to the place of the others."""
    wait_for(lambda: len(device.live) == 1)
    rows = Rows((np.repeat(np.arange(1.0, 14.0, dtype=np.float32), WIDE.shape[0]).tobytes(),), 13)
    assert (way.ask(rows).array()[:, 0] == 2 * np.arange(1, 14)).all()
    assert device.direct == 4, "of its four pieces, which are copied from where they lie"


def test_small_answers_to_large_requests_are_copied_by_the_processor(tmp_path: Path, device: PinningDevice) -> None:
    compiled = FakeCompiled(NAME, (1, 4), inputs=(WIDE,), device=device, forward=lambda x: (x[:, :2] * 2,))
    way = Way(tmp_path, compiled, LANES)
    wait_for(lambda: len(device.live) == 1)
    assert answered(way.ask(wide(3.0)), 3.0)
    assert device.direct == 1
    way.close()


def test_neighbours_with_large_and_small_answers(tmp_path: Path, device: PinningDevice) -> None:
    """Two outputs: what is written by the device itself, and what goes through the lane's own memory."""
    half = TensorSpec("half", "float32", (DIRECT_BYTES // 8,))
    compiled = FakeCompiled(
        NAME, (1, 4), inputs=(WIDE,), outputs=(half, WIDE), device=device, forward=lambda x: (x[:, ::2] * 3, x * 2)
    )
    way = Way(tmp_path, compiled, LANES)
    wait_for(lambda: len(device.live) == 1)
    asked = [(value, 1 + value % 2, way.ask(wide(value, 1 + value % 2))) for value in range(1, 13)]
    for value, count, answer in asked:
        assert (answer.array(0) == 3 * value).all()
        assert (answer.array(1) == 2 * value).all()
        assert len(answer.array(0)) == count
    whole, both = (sum(count == n for _, count, _ in asked) for n in (1, 2))
    assert device.direct == 2 * whole + 3 * both, "two rows of the first output are large enough, one is not"
    way.close()


def test_memory_is_pinned_as_soon_as_a_model_gains_by_it(tmp_path: Path) -> None:
    device = PinningDevice()
    way = Way(tmp_path)
    way.compiled = FakeCompiled(NAME, (1, 4), inputs=(WIDE,), outputs=(WIDE,), device=device)
    assert not device.live
    way.server.registry.load(NAME).result(PATIENCE_S)
    assert len(device.live) == 1
    way.close()
    assert (device.live, len(device.closed)) == ([], 1)
    device.close()


def test_memory_that_cannot_be_pinned_is_said_once_and_serves(
    tmp_path: Path, device: PinningDevice, caplog: pytest.LogCaptureFixture
) -> None:
    device.refusal = DeviceError("not permitted")
    way = Way(tmp_path, FakeCompiled(NAME, (1, 4), inputs=(WIDE,), outputs=(WIDE,), device=device), LANES)
    assert answered(way.ask(wide(3.0)), 3.0)
    way.connect(others := link())
    assert answered(way.ask(wide(4.0)), 4.0)
    way.close()
    close(*others)
    (told,) = [record.getMessage() for record in caplog.records if "pinned" in record.getMessage()]
    assert "not permitted" in told
    assert device.direct == 0


def test_of_a_killed_worker_memory_stays_until_no_copy_of_it_is_pending(way: Way, device: PinningDevice) -> None:
    wait_for(lambda: len(device.live) == 1)
    device.copying.clear()
    way.ask(wide(2.0))
    wait_for(lambda: device.direct == 2)
    way.ask(wide(3.0))  # in the other lane
    wait_for(lambda: device.direct == 4)
    (line,) = way.desk._lines.values()
    os.dup2(os.open(os.devnull, os.O_WRONLY), way.ends[1].submissions)  # as the kernel does when a process ends
    wait_for(lambda: not line._up)
    assert way.counts()[3] == 2
    assert len(device.live) == 1
    device.copying.set()
    wait_for(lambda: not device.live)
    assert device.closed == [0]
    assert {2.0, 3.0} <= {*device.copied}
    way.connect(others := link())
    wait_for(lambda: len(device.live) == 1)
    assert answered(way.ask(wide(4.0)), 4.0)
    close(*others)


def test_nothing_is_unpinned_while_a_copy_is_pending(way: Way, device: PinningDevice) -> None:
    pins = way.server.registry.pins
    other = pins.keep(memoryview(bytearray(100)))
    wait_for(lambda: len(device.live) == 2)
    device.copying.clear()
    answer = way.ask(wide(1.0))
    wait_for(lambda: device.direct == 2)
    pins.release(other)
    assert len(device.live) == 2
    device.copying.set()
    wait_for(lambda: len(device.live) == 1)
    assert device.closed == [0]
    assert answered(answer, 1.0)


def test_of_a_cancelled_request_the_place_is_kept_until_it_has_been_copied(way: Way, device: PinningDevice) -> None:
    wait_for(lambda: len(device.live) == 1)
    device.copying.clear()
    cancelled, answer = Answer(), None
    ticket = way.model.batcher.submit(wide(5.0), None, cancelled)
    wait_for(lambda: device.direct == 2)
    ticket.cancel()
    assert isinstance(cancelled.error(), Cancelled)
    answer = way.ask(wide(6.0))
    assert way.caller._slots.taken == 2
    device.copying.set()
    assert answered(answer, 6.0)
    wait_for(lambda: way.caller._slots.taken == 0)
    assert 5.0 in device.copied


def test_the_end_unpins_what_is_left(tmp_path: Path, device: PinningDevice) -> None:
    way = Way(tmp_path, FakeCompiled(NAME, (1, 4), inputs=(WIDE,), outputs=(WIDE,), device=device), LANES)
    wait_for(lambda: len(device.live) == 1)
    assert way.server.executor.stop(PATIENCE_S)
    assert (device.live, device.closed) == ([], [0])
    way.close()
