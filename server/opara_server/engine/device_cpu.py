"""The CPU as a device: a stream is a worker thread, an event a threading.Event; a capture is the list of launches.

Operators of different streams truly run at the same time (PyTorch's operators release the GIL). PyTorch's own threads
inside an operator are divided among the streams, so that k streams do not ask for k times the machine.
"""

from __future__ import annotations

import os
import platform
import queue
import statistics
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import torch

from opara_server.engine.device import CapturedGraph, DeviceKind, arena_block
from opara_server.engine.errors import CaptureError
from opara_server.engine.intra_op import faster
from opara_server.engine.launch import Launch, LaunchList
from opara_server.engine.profile import Profile
from opara_server.engine.profiler import profile_cpu
from opara_server.engine.program import Environment, Program
from opara_server.engine.schedule import MAX_STREAMS
from opara_server.engine.simulate import IDEAL, Latency
from opara_server.engine.trace import Interval, Trace

Job = Callable[[], None]
Observe = Callable[[Launch, float, float], None]  # a launch, with when its operator began and ended

TRIAL_RUNS = 9
HANDOVERS = 200


@dataclass(frozen=True, slots=True)
class CpuStamp:
    """A reading of the monotonic clock: on the CPU the calling thread is the queue."""

    seconds: float

    def elapsed_us(self, later: CpuStamp) -> float:
        return (later.seconds - self.seconds) * 1e6

    def wait(self) -> None:
        """It has passed."""

    def hold(self) -> None:
        """It has passed."""


class Worker:
    """A thread that runs jobs in order; one stream. It ends on close(), or once nobody holds the worker."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, self._jobs.put, None)

    def submit(self, job: Job) -> None:
        self._jobs.put(job)

    def close(self) -> None:
        self._end()
        self._thread.join()


def _work(jobs: queue.SimpleQueue[Job | None]) -> None:
    with torch.inference_mode():
        while (job := jobs.get()) is not None:
            job()
            del job  # it holds the run's tensors


class CpuDevice:
    """Worker threads are made as captures need them and shared by all graphs of the device."""

    kind: DeviceKind = "cpu"

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

    def stamp(self) -> CpuStamp:
        return CpuStamp(time.perf_counter())

    def beside(self) -> None:
        """What is enqueued has run."""

    def occupy(self) -> None:
        """The CPU waits for nobody."""

    def synchronize(self) -> None:
        """Nothing to wait for: a replay returns when it is done."""

    @contextmanager
    def bind(self) -> Iterator[None]:
        with torch.inference_mode():
            yield

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


class CpuGraph:
    """A launch list bound to threads. Every replay fills a fresh environment and copies the results to ``outputs``.

    An operator uses the stream's share of PyTorch's threads, or one alone where the whole runs faster so: for small
    operators, or on a machine with other work, threads cost more than they bring.
    """

    def __init__(
        self, program: Program, launches: LaunchList, arena: torch.Tensor, workers: Sequence[Worker], threads: int
    ) -> None:
        self.inputs = program.inputs
        self.arena = arena
        self.peak_bytes: int | None = None
        self._program = program
        self._prepared = program.prepare(launches.arena, arena)
        self._streams = [[x for x in launches.launches if x.stream == s] for s in range(launches.streams)]
        self._awaited = [launch.operator for launch in launches.launches if launch.awaited]
        self._workers = workers
        self._threads = 1
        try:
            results = self._run()
        except Exception as error:
            raise CaptureError(f"the model's operators fail: {error}") from error
        self.outputs: tuple[torch.Tensor, ...] = tuple(torch.empty_like(result) for result in results)
        self._threads = faster(max(1, threads // launches.streams), self._seconds_with)

    def replay(self) -> None:
        self._store(self._run())

    def trace(self, replays: int) -> Trace:
        return Trace(tuple(self._traced() for _ in range(replays)))

    def close(self) -> None:
        self.outputs = ()
        self.arena = torch.empty(0, dtype=torch.uint8)
        self._prepared = []
        self._streams = []

    def _store(self, results: tuple[torch.Tensor, ...]) -> None:
        for static, result in zip(self.outputs, results, strict=True):
            static.copy_(result)

    def _seconds_with(self, threads: int, observe: Observe | None) -> list[float]:
        """Of a few runs; the first is to warm up."""
        self._threads = threads
        stamps = [time.perf_counter()]
        for _ in range(TRIAL_RUNS + 1):
            self._store(self._run(observe))
            stamps.append(time.perf_counter())
        return [end - start for start, end in pairwise(stamps)]

    def _traced(self) -> tuple[Interval, ...]:
        intervals: list[Interval] = []  # list.append is atomic
        begin = time.perf_counter()
        self._run(
            lambda launch, start, end: intervals.append(
                Interval(launch.stream, (start - begin) * 1e6, (end - begin) * 1e6)
            )
        )
        return tuple(intervals)

    def _run(self, observe: Observe | None = None) -> tuple[torch.Tensor, ...]:
        run = _Run(self._program, self._program.new_environment(self._prepared), self._awaited, observe)
        ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        for worker, launches in zip(self._workers, self._streams[1:], strict=True):
            worker.submit(partial(run.stream, launches, self._threads, ended))
        callers_threads = torch.get_num_threads()
        run.stream(self._streams[0], self._threads, ended)
        for _ in self._streams:
            ended.get()
        if torch.get_num_threads() != callers_threads:
            torch.set_num_threads(callers_threads)
        if run.error is not None:
            raise run.error
        return self._program.results(run.environment)


class _Run:
    """One replay in progress: its values, its events, and the first thing that went wrong."""

    def __init__(
        self,
        program: Program,
        environment: Environment,
        awaited: Sequence[int],
        observe: Observe | None,
    ) -> None:
        self.environment = environment
        self.error: BaseException | None = None
        self._program = program
        self._events = {operator: threading.Event() for operator in awaited}
        self._observe = observe

    def stream(self, launches: Sequence[Launch], threads: int, ended: queue.SimpleQueue[None]) -> None:
        """Run one stream's launches in order. After an error anywhere the rest only sets its events: nobody hangs."""
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        for launch in launches:
            try:
                for awaited in launch.waits:
                    self._events[awaited].wait()
                if self.error is None:
                    self._launch(launch)
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that replays
                self.error = self.error or error
            if launch.awaited:
                self._events[launch.operator].set()
        ended.put(None)

    def _launch(self, launch: Launch) -> None:
        for buffer in launch.frees:
            self._program.release(buffer, self.environment)
        start = time.perf_counter()
        self._program.run(launch.operator, self.environment)
        if self._observe is not None:
            self._observe(launch, start, time.perf_counter())


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
