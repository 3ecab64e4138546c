"""The CPU as a device: a stream is a worker thread, an event a threading.Event; a capture is the list of launches.

Operators of different streams truly run at the same time (PyTorch's operators release the GIL). PyTorch's own threads
inside an operator are divided among the streams, so that k streams do not ask for k times the machine.
"""

from __future__ import annotations

import os
import platform
import statistics
import threading
import time
import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from opara_server.engine.cpu_graph import CpuGraph, Worker
from opara_server.engine.device import CapturedGraph, DeviceKind, arena_block
from opara_server.engine.launch import LaunchList
from opara_server.engine.profile import Profile
from opara_server.engine.profiler import profile_cpu
from opara_server.engine.program import Program
from opara_server.engine.schedule import MAX_STREAMS
from opara_server.engine.simulate import IDEAL, Latency

HANDOVERS = 200


@dataclass(slots=True)  # not frozen: making a frozen one takes three times as long, and every batch makes four
class CpuStamp:
    """A reading of the monotonic clock: on the CPU the calling thread is the queue."""

    seconds: float

    def elapsed_us(self, later: CpuStamp) -> float:
        return (later.seconds - self.seconds) * 1e6

    def wait(self) -> None:
        """It has passed."""

    def hold(self, queue: None = None) -> None:
        """It has passed."""


class CpuDevice:
    """Worker threads are made as captures need them and shared by all graphs of the device."""

    kind: DeviceKind = "cpu"
    pinner = None

    def __init__(self, threads: int | None = None) -> None:
        """``threads``: how many of PyTorch's threads all streams together may use; default: PyTorch's own number."""
        self.name = _processor_name()
        self.threads = threads or torch.get_num_threads()
        self.max_streams = max(2, min(MAX_STREAMS, self.threads))
        self.latency: Latency = replace(IDEAL, wait_us=_handover_us())
        self._workers: list[Worker] = []
        self._graphs: weakref.WeakSet[CpuGraph] = weakref.WeakSet()

    def torch_device(self) -> torch.device:
        return torch.device("cpu")

    def capture(self, program: Program, launches: LaunchList, *, passing: bool = False) -> CapturedGraph:  # noqa: ARG002
        while len(self._workers) < launches.streams - 1:  # stream 0 is the thread that replays
            self._workers.append(Worker(f"opara-stream-{len(self._workers) + 1}"))
        arena = arena_block(self._graphs, launches.arena.size, self.torch_device())
        graph = CpuGraph(program, launches, arena, self._workers[: launches.streams - 1], self.threads)
        self._graphs.add(graph)
        return graph

    def profile(self, program: Program) -> Profile:
        return profile_cpu(program)

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def pinned(self, memory: bytes | memoryview) -> None:
        """There are no copies to a device."""

    def mapped(self, static: torch.Tensor) -> torch.Tensor | None:
        return static.view(static.numel()).view(torch.uint8) if static.is_contiguous() else None

    def stamp(self) -> CpuStamp:
        return CpuStamp(time.perf_counter())

    def beside(self) -> None:
        """What is enqueued has run."""

    def occupy(self) -> None:
        """The CPU waits for nobody."""

    def synchronize(self) -> None:
        """Nothing to wait for: a replay returns when it is done."""

    def bind(self) -> AbstractContextManager[None]:
        return torch.inference_mode()

    def tuning(self) -> AbstractContextManager[None]:
        """Nothing to choose from."""
        return nullcontext()

    def fingerprint(self) -> dict[str, str]:
        return {
            "processor": self.name,
            "threads": str(self.threads),
            "torch": torch.__version__,
            "capability": torch.backends.cpu.get_cpu_capability(),
        }

    def held_bytes(self) -> int:
        blocks = {graph.arena.data_ptr(): graph.arena.nbytes for graph in self._graphs}
        return sum(blocks.values()) + sum(output.nbytes for graph in self._graphs for output in graph.outputs)

    def trim(self) -> None:
        """Nothing is cached."""

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers.clear()


@cache
def _handover_us() -> float:
    """From one thread's Event.set to the other's return from wait, the median of many."""
    there, back = threading.Event(), threading.Event()

    def answer() -> None:
        for _ in range(HANDOVERS):
            there.wait()
            there.clear()
            back.set()

    thread = threading.Thread(target=answer)
    thread.start()
    seconds = []
    for _ in range(HANDOVERS):
        start = time.perf_counter()
        there.set()
        back.wait()
        back.clear()
        seconds.append((time.perf_counter() - start) / 2)
    thread.join()
    return statistics.median(seconds) * 1e6


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.processor() or platform.machine()} ({os.cpu_count()} cores)"
