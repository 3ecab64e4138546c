"""A device that runs beside the thread that uses it, as a GPU does, with its queues out of step."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.serving.fakes import PATIENCE_S, FakeDevice

Work = Callable[[], None]


class WorkQueue:
    """Runs what it is given in order, on a thread of its own, each piece after a random delay."""

    def __init__(self, device: QueuedDevice) -> None:
        self._device = device
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, work: Work) -> None:
        self._work.put(work)

    @contextmanager
    def entered(self) -> Iterator[None]:
        before, self._device.current = self._device.current, self
        yield
        self._device.current = before

    def stamp(self) -> QueuedStamp:
        return QueuedStamp(self._device, self)

    def close(self) -> None:
        self._work.put(None)
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        with torch.inference_mode():
            while (work := self._work.get()) is not None:
                time.sleep(self._device.delay_s(self))
                try:
                    work()
                except RuntimeError as error:  # what runs on a device raises nowhere: whoever waits is told
                    self._device.failed = error


class QueuedStamp:
    def __init__(self, device: QueuedDevice, queue: WorkQueue) -> None:
        self._device = device
        self._passed = threading.Event()
        self._seconds = 0.0
        queue.put(self._pass)

    def _pass(self) -> None:
        self._seconds = time.perf_counter()
        self._passed.set()

    def wait(self) -> None:
        self.reached()
        if self._device.failed is not None:
            raise self._device.failed.with_traceback(None)

    def hold(self, queue: WorkQueue | None = None) -> None:
        if not self._device.faulty:
            (queue or self._device.current).put(self.reached)

    def reached(self) -> None:
        assert self._passed.wait(PATIENCE_S)

    def elapsed_us(self, later: QueuedStamp) -> float:
        assert self._passed.is_set()
        assert later._passed.is_set()
        return (later._seconds - self._seconds) * 1e6


class Copies(TorchDispatchMode):
    """Copies that need not block do not."""

    def __init__(self, device: QueuedDevice) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default and args[2:] == (True,):
            self._enqueue(args[0], args[1])
            return args[0]
        if func is torch.ops.aten._foreach_copy_.default and args[2:] == (True,):
            for target, source in zip(*args[:2], strict=True):
                self._enqueue(target, source)
            return None
        return func(*args, **(kwargs or {}))

    def _enqueue(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self._device.begun += 1
        self._device.enqueue(partial(self._copy, target, source))

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        assert self._device.copying.wait(PATIENCE_S)
        target.copy_(source)
        first = source.flatten()[:4].clone() if source.dtype == torch.uint8 else source.flatten()[:1]
        self._device.copied.append(float(first.view(torch.float32)[0]))


class QueuedDevice(FakeDevice):
    """``copied``: the first float32 of each copy, in order; ``begun``: how many were enqueued; ``copying`` closed holds
    them. ``failed``: an error, as all that wait see from then on.
    ``faulty``: waits between queues are forgotten, and those beside are late."""

    def __init__(self, seed: int = 0, longest_delay_s: float = 0.0005) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._longest_delay_s = longest_delay_s
        self._queues = [WorkQueue(self)]
        self.current = self._queues[0]
        self.failed: RuntimeError | None = None
        self.copied: list[float] = []
        self.begun = 0
        self.copying = threading.Event()
        self.copying.set()
        self.faulty = False

    def delay_s(self, queue: WorkQueue) -> float:
        if self.faulty:
            return 0.0 if queue is self._queues[0] else self._longest_delay_s
        return self._random.choice((0.0, 0.0, self._random.uniform(0.0, self._longest_delay_s)))

    def enqueue(self, work: Work) -> None:
        self.current.put(work)

    def beside(self) -> WorkQueue:
        self._queues.append(WorkQueue(self))
        return self._queues[-1]

    def stamp(self) -> QueuedStamp:
        return QueuedStamp(self, self.current)

    def synchronize(self) -> None:
        self.stamp().reached()
        super().synchronize()

    @contextmanager
    def bind(self) -> Iterator[None]:
        with super().bind(), Copies(self):
            yield

    def close(self) -> None:
        for queue in self._queues:
            queue.close()
