"""The GPU as a device: CUDA streams, events, and graphs captured over several streams.

A device owns the streams it captures on: PyTorch's pool hands out the same 32 to everybody, and cuBLAS keeps a
workspace per stream, which must not be shared with graphs of other owners (pytorch/pytorch#193402). PyTorch never frees
such a workspace, so a closed device's streams are not destroyed but handed to the next one. Every capture is preceded
by an ordinary run of the same launches on the same streams: cuDNN and cuBLAS choose algorithms, make handles and take
their workspaces there, outside the graph's memory.

So a graph may be closed while others live: its memory is its own or of a pool that the others keep, and no workspace
goes with it. From 2.12 on PyTorch drops those of the stream on which a destroyed graph's capture began, whoever else's
graphs write to them: captures begin and end on a stream on which no operator ever runs.
"""

from __future__ import annotations

import gc
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from opara_server.engine.cuda_fingerprint import fingerprint
from opara_server.engine.cuda_memory import CudaPin, pinned
from opara_server.engine.cuda_streams import STREAMS, driver_version
from opara_server.engine.device import CapturedGraph, DeviceKind, arena_block
from opara_server.engine.errors import CaptureError, first_line
from opara_server.engine.launch import LaunchList
from opara_server.engine.profile import Profile
from opara_server.engine.profiler import profile_cuda, trace_cuda
from opara_server.engine.program import Environment, Program
from opara_server.engine.schedule import MAX_STREAMS
from opara_server.engine.simulate import Latency
from opara_server.engine.trace import Trace

ORIGIN = -1  # the number of the stream that captures begin on
OCCUPIED_CYCLES = 400_000  # of an SM: 200 µs or more


class CudaStamp:
    """An event on a stream. Events are used again: CUDA takes longer to make and destroy one than to record it."""

    def __init__(self, event: torch.cuda.Event, stream: torch.cuda.Stream, spare: deque[torch.cuda.Event]) -> None:
        """``spare``: where it leaves its event in the end."""
        self._event, self._stream, self._spare = event, stream, spare
        event.record(stream)

    def __del__(self) -> None:
        self._spare.append(self._event)

    def elapsed_us(self, later: CudaStamp) -> float:
        return float(self._event.elapsed_time(later._event)) * 1e3

    def wait(self) -> None:
        self._event.synchronize()

    def hold(self, queue: CudaQueue | None = None) -> None:
        self._event.wait(torch.cuda.current_stream(self._stream.device) if queue is None else queue.stream)


class CudaStamps:
    """Makes one GPU's. Any thread."""

    def __init__(self) -> None:
        self._spare: deque[torch.cuda.Event] = deque()

    def on(self, stream: torch.cuda.Stream) -> CudaStamp:
        try:
            event = self._spare.pop()
        except IndexError:
            event = torch.cuda.Event(enable_timing=True, blocking=True)
        return CudaStamp(event, stream, self._spare)


class CudaQueue:
    """A stream of PyTorch's, for copies: kernels that need a workspace of their stream do not run there."""

    def __init__(self, gpu: int, stamps: CudaStamps) -> None:
        self._home = torch.cuda.current_stream(gpu)  # which is not asked for each time: that takes PyTorch long
        self.stream = torch.cuda.Stream(gpu)
        self._stamps = stamps

    def stamp(self) -> CudaStamp:
        return self._stamps.on(self.stream)

    @contextmanager
    def entered(self) -> Iterator[None]:
        torch.cuda.set_stream(self.stream)
        try:
            yield
        finally:
            torch.cuda.set_stream(self._home)


class CudaDevice:
    """One model's streams and graph memory on the current GPU."""

    kind: DeviceKind = "cuda"
    pinner = CudaPin
    latency = Latency()

    def __init__(self) -> None:
        self._index = torch.cuda.current_device()
        self._properties = torch.cuda.get_device_properties(self._index)
        self.name: str = self._properties.name
        self.max_streams = MAX_STREAMS  # as many as the hardware's work queues
        self._streams: dict[tuple[int, bool], torch.cuda.ExternalStream] = {}
        self._stamps = CudaStamps()
        self._graphs: set[CudaGraph] = set()
        self._passing: set[CudaGraph] = set()  # of them those with memory of their own

    def torch_device(self) -> torch.device:
        return torch.device("cuda", self._index)

    def capture(self, program: Program, launches: LaunchList, *, passing: bool = False) -> CapturedGraph:
        streams = [self._stream(number, number in launches.urgent) for number in range(launches.streams)]
        origin = self._stream(ORIGIN, urgent=False)
        # A pool keeps what any of its graphs ever needed for as long as one of them lives.
        pool = None if passing else next((graph.pool for graph in self._graphs - self._passing), None)
        try:
            arena = arena_block(self._graphs, launches.arena.size, self.torch_device())
            graph = CudaGraph(program, launches, arena, origin, streams, pool, self._forget)
        except Exception as error:  # CUDA's refusal, or whatever the model's own code raises
            raise CaptureError(f"CUDA cannot capture the model: {first_line(error)}") from error
        self._graphs.add(graph)
        if passing:
            self._passing.add(graph)
        return graph

    def _forget(self, graph: CudaGraph) -> None:
        self._graphs.discard(graph)
        self._passing.discard(graph)

    def _stream(self, number: int, urgent: bool) -> torch.cuda.ExternalStream:
        """The same stream for the same number, so that graph after graph reuses its blocks of memory."""
        if (number, urgent) not in self._streams:
            self._streams[number, urgent] = STREAMS.take(self._index, urgent)
        return self._streams[number, urgent]

    def profile(self, program: Program) -> Profile:
        return profile_cuda(program)

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def pinned(self, memory: bytes | memoryview) -> torch.Tensor | None:
        return pinned(memory) if isinstance(memory, memoryview) else None

    def mapped(self, static: torch.Tensor) -> None:
        """It is the device's own."""

    def stamp(self) -> CudaStamp:
        return self._stamps.on(torch.cuda.current_stream(self._index))

    def beside(self) -> CudaQueue:
        return CudaQueue(self._index, self._stamps)

    def occupy(self) -> None:
        torch.cuda._sleep(OCCUPIED_CYCLES)

    def synchronize(self) -> None:
        torch.cuda.current_stream(self._index).synchronize()

    @contextmanager
    def bind(self) -> Iterator[None]:
        with torch.cuda.device(self._index), torch.inference_mode():
            yield

    @contextmanager
    def tuning(self) -> Iterator[None]:
        chosen_before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = chosen_before

    def fingerprint(self) -> dict[str, str]:
        return fingerprint(self._properties, driver_version())

    def held_bytes(self) -> int:
        pools = {graph.pool for graph in self._graphs}
        segments = torch.cuda.memory_snapshot()
        blocks = {graph.arena.data_ptr(): graph.arena.nbytes for graph in self._graphs}
        pooled: int = sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) in pools)
        return pooled + sum(blocks.values())

    def trim(self) -> None:
        torch.cuda.synchronize(self._index)
        torch.cuda.empty_cache()

    def close(self) -> None:
        """Close the graphs and give the streams back."""
        torch.cuda.synchronize(self._index)
        for graph in list(self._graphs):
            graph.close()
        for (_, urgent), stream in reversed(self._streams.items()):
            STREAMS.give_back(self._index, urgent, stream)
        self._streams.clear()


class CudaGraph:
    """One captured graph with its static outputs. ``arena`` and ``pool``: the memory it lives in, explicit buffers and
    all others, to be shared with the next one, so that a bucket smaller than another costs no memory of its own."""

    anywhere = False
    fresh: frozenset[int] = frozenset()

    def __init__(
        self,
        program: Program,
        launches: LaunchList,
        arena: torch.Tensor,
        origin: torch.cuda.ExternalStream,
        streams: list[torch.cuda.ExternalStream],
        pool: tuple[int, int] | None,
        on_close: Callable[[CudaGraph], None],
    ) -> None:
        self._on_close = on_close
        self.inputs = program.inputs
        self.arena = arena
        self._program = program  # replays read its weights at their addresses
        prepared = program.prepare(launches.arena, arena)
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(origin):
            with _refusing_synchronisation(), _forked(origin, streams[0]):
                _issue(program, prepared, launches, streams)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with _without_garbage_collection():
                self._graph.capture_begin(pool, capture_error_mode="thread_local")  # type: ignore[arg-type]
                try:
                    with _forked(origin, streams[0]):
                        self.outputs = _issue(program, prepared, launches, streams)
                finally:
                    self._graph.capture_end()
        self.peak_bytes: int | None = launches.arena.size + torch.cuda.max_memory_allocated() - before
        self.pool: tuple[int, int] = self._graph.pool()
        torch.cuda.synchronize()

    def replay(self) -> None:
        self._graph.replay()

    def trace(self, replays: int) -> Trace:
        return trace_cuda(self._graph.replay, replays)

    def close(self) -> None:
        self.outputs = ()
        self.arena = torch.empty(0, dtype=torch.uint8)
        self._graph.reset()
        self._on_close(self)


def _issue(
    program: Program, prepared: Environment, launches: LaunchList, streams: list[torch.cuda.ExternalStream]
) -> tuple[torch.Tensor, ...]:
    """Launch everything once, from and back to streams[0], which is the current stream."""
    environment = program.new_environment(prepared)
    events: dict[int, torch.cuda.Event] = {}
    begin = torch.cuda.Event()
    begin.record(streams[0])
    for launch in launches.launches:
        stream = streams[launch.stream]
        if launch.fork:
            stream.wait_event(begin)
        for awaited in launch.waits:
            stream.wait_event(events[awaited])
        for buffer in launch.frees:
            program.release(buffer, environment)
        with torch.cuda.stream(stream):
            program.run(launch.operator, environment)
        if launch.awaited:
            events[launch.operator] = torch.cuda.Event()
            events[launch.operator].record(stream)
    for last in launches.joins:
        streams[0].wait_event(events[last])
    return program.results(environment)


@contextmanager
def _forked(origin: torch.cuda.ExternalStream, stream: torch.cuda.ExternalStream) -> Iterator[None]:
    """``stream`` as the current one: from ``origin`` and back to it. In a graph neither is a node or an edge."""
    begin, end = torch.cuda.Event(), torch.cuda.Event()
    begin.record(origin)
    stream.wait_event(begin)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        end.record(stream)
        origin.wait_event(end)


@contextmanager
def _refusing_synchronisation() -> Iterator[None]:
    """An operator that waits for the GPU cannot be captured: raise RuntimeError before a capture is begun, because
    PyTorch's random number generators and allocator do not recover from one that is broken off."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode does not detect everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A collection in the middle of a capture could destroy another graph, which CUDA forbids there."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
