"""A captured graph of the CPU: the list of launches, run on the threads that are its streams."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch

from opara_server.engine.errors import CaptureError
from opara_server.engine.intra_op import faster
from opara_server.engine.launch import Launch, LaunchList
from opara_server.engine.program import Environment, Program, bound
from opara_server.engine.trace import Interval, Trace

Job = Callable[[], None]
Observe = Callable[[Launch, float, float], None]  # a launch, with when its operator began and ended

TRIAL_RUNS = 9
KEPT_BYTES = 1 << 15  # of a result: a smaller one is copied in less time than it takes to look into another tensor


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


class CpuGraph:
    """A launch list bound to threads. Every replay fills a fresh environment; small results are copied to ``outputs``,
    large ones take their places. One stream needs neither threads, nor locks, nor events: it is a loop over calls.

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
        self._alone = [(launch, self._released(launch), self._calls(launch)) for launch in self._streams[0]]
        self._workers = workers
        self._threads = 1
        try:
            results, others = self._run(), self._run()
        except Exception as error:
            raise CaptureError(f"the model's operators fail: {error}") from error
        self.fresh = frozenset(
            index for index, pair in enumerate(zip(results, others, strict=True)) if _made_anew(*pair)
        )
        rows = torch.contiguous_format  # so that answers can be read where they are
        self.outputs: tuple[torch.Tensor, ...] = tuple(
            result if index in self.fresh else torch.empty_like(result, memory_format=rows)
            for index, result in enumerate(results)
        )
        self._threads = faster(max(1, threads // launches.streams), self._seconds_with)

    @property
    def anywhere(self) -> bool:
        return self._threads == 1 and not self._workers  # a thread that runs operators on several has those for itself

    def replay(self) -> None:
        self._store(self._run())

    def trace(self, replays: int) -> Trace:
        return Trace(tuple(self._traced() for _ in range(replays)))

    def close(self) -> None:
        self.outputs = ()
        self.arena = torch.empty(0, dtype=torch.uint8)
        self._prepared = []
        self._streams = []
        self._alone = []

    def _released(self, launch: Launch) -> tuple[int, ...]:
        """The values that it drops before it runs."""
        return tuple(value for buffer in launch.frees for value in self._program.buffer_values[buffer])

    def _calls(self, launch: Launch) -> tuple[Callable[[Environment], None], ...]:
        return tuple(map(bound, self._program.bodies[launch.operator]))

    def _store(self, results: tuple[torch.Tensor, ...]) -> None:
        if self.fresh:
            self.outputs = tuple(results[i] if i in self.fresh else static for i, static in enumerate(self.outputs))
        for output, result in zip(self.outputs, results, strict=True):
            if output is not result:
                output.copy_(result)

    def _seconds_with(self, threads: int, observe: Observe | None) -> list[float]:
        """Of a few runs; the first is to warm up."""
        self._threads = threads
        stamps = [time.perf_counter()]
        for _ in range(TRIAL_RUNS + 1):
            self._store(self._run(observe))
            stamps.append(time.perf_counter())
        return [end - start for start, end in pairwise(stamps)]

    def _traced(self) -> tuple[Interval, ...]:
        seen: list[tuple[Launch, float, float]] = []  # list.append is atomic
        begin = time.perf_counter()
        self._run(lambda launch, start, end: seen.append((launch, start, end)))
        operators = self._program.graph.operators
        return tuple(
            Interval(launch.stream, (start - begin) * 1e6, (end - begin) * 1e6, operators[launch.operator].name)
            for launch, start, end in seen
        )

    def _run(self, observe: Observe | None = None) -> tuple[torch.Tensor, ...]:
        return self._run_beside(observe) if self._workers else self._run_alone(observe)

    def _run_alone(self, observe: Observe | None) -> tuple[torch.Tensor, ...]:
        environment = self._program.new_environment(self._prepared)
        callers_threads = torch.get_num_threads()
        if callers_threads != self._threads:
            torch.set_num_threads(self._threads)
        try:
            for launch, released, calls in self._alone:
                for value in released:
                    environment[value] = None
                start = time.perf_counter() if observe is not None else 0.0
                for call in calls:
                    call(environment)
                if observe is not None:
                    observe(launch, start, time.perf_counter())
        finally:
            if callers_threads != self._threads:
                torch.set_num_threads(callers_threads)
        return self._program.results(environment)

    def _run_beside(self, observe: Observe | None) -> tuple[torch.Tensor, ...]:
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


def _made_anew(result: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether a result is worth being handed over, and can be: that of another run, made while this one is held, lies
    elsewhere. An input, a weight, a buffer, or a view of one does not."""
    elsewhere = result.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()
    return elsewhere and result.nbytes >= KEPT_BYTES and result.is_contiguous()


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
