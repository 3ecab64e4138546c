"""Ways to run a function on static inputs: as it is, or captured by a plain CUDA Graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
WARM_UP_RUNS = 3


class Called:
    """Called anew for every run, as a user would."""

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self._function = function
        self.inputs = tuple(inputs)
        self.outputs: tuple[Tensor, ...] = ()
        for _ in range(WARM_UP_RUNS):
            self.replay()

    def replay(self) -> None:
        self.outputs = self._function(*self.inputs)


class PlainGraph:
    """``torch.cuda.graph`` around one call: the sequential CUDA Graph that anybody can have.

    Captured on a stream of its own after ordinary runs there, so that cuBLAS's workspace for the stream lies outside
    the graph's memory. ``kept``: what owns the kernels and constants that replays use. ``peak_bytes``: what the
    captured run allocated at most.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], kept: object = None) -> None:
        self.inputs = tuple(inputs)
        self._kept = kept
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                function(*self.inputs)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with (
            watched_memory() as memory,
            torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"),
        ):
            self.outputs = function(*self.inputs)
        self.peak_bytes = memory.peak_bytes

    def replay(self) -> None:
        self._graph.replay()


@dataclass
class Memory:
    """``peak_bytes``: the most that was allocated at once, beyond what had been before."""

    peak_bytes: int = 0


@contextmanager
def watched_memory() -> Iterator[Memory]:
    memory = Memory()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield memory
    memory.peak_bytes = torch.cuda.max_memory_allocated() - before


def held_memory() -> int:
    """Bytes that PyTorch's allocator holds on the GPU and cannot give back."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_reserved())
