"""What the engine and the executor need of a device: capture, replay, host buffers, points in time.

Two implementations: `device_cuda` (streams, events and graphs of CUDA) and `device_cpu` (a stream is a worker thread).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, Self

import torch

from opara_server.engine.errors import DeviceError
from opara_server.engine.launch import LaunchList
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.simulate import Latency
from opara_server.engine.trace import Trace

DeviceKind = Literal["cuda", "cpu"]


class Stamp(Protocol):
    """A point in a device's queue."""

    def elapsed_us(self, later: Self) -> float:
        """Time from this point to a later one; both must have passed."""
        ...

    def wait(self) -> None:
        """Block, without spinning, until it has passed. Any thread. Raises what the device had to say instead."""
        ...

    def hold(self, queue: Any = None) -> None:
        """What is enqueued from now on in ``queue``, one of the same device's, waits for this point; None: in the
        calling thread's current one."""
        ...


class Queue(Protocol):
    """Work in an order of its own, beside what a thread enqueues otherwise."""

    def entered(self) -> AbstractContextManager[None]:
        """Make it the calling thread's current queue, on the thread that made it."""
        ...

    def stamp(self) -> Stamp:
        """A point in it: all that has been enqueued so far."""
        ...


class Pin(Protocol):
    """Memory that copies to and from a device use as it is, until it is closed."""

    def close(self) -> None:
        """No copy may be pending. Raises DeviceError."""
        ...


Pinner = Callable[[memoryview], Pin]
"""Pins writable memory whose pages stay where they are, for all of the process. Raises DeviceError."""


class CapturedGraph(Protocol):
    """A schedule, ready to run again and again on static inputs and outputs.

    ``arena``: the memory of its explicit buffers, uint8, which nobody reads between two replays. ``peak_bytes``: what a
    run has in use at most, as measured when it was captured: explicit buffers, activations, outputs, and what libraries
    take for the moment; None where the device does not measure it. ``anywhere``: whether a replay runs on the thread
    that asks for it and on no other, whichever it is. ``fresh``: indices of outputs that are not static: after every
    replay they are other tensors in other memory, in rows, and who holds the former ones may still read them.
    """

    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    arena: torch.Tensor
    peak_bytes: int | None

    @property
    def anywhere(self) -> bool: ...
    @property
    def fresh(self) -> frozenset[int]: ...

    def replay(self) -> None:
        """Enqueue one run. On cuda it returns before the device is done, on cpu afterwards."""
        ...

    def trace(self, replays: int) -> Trace:
        """Run ``replays`` times and tell what ran when on which stream. Slow: the profiler is on."""
        ...

    def close(self) -> None:
        """Free what only this graph holds. The device must be idle."""
        ...


class Device(Protocol):
    """One model's share of a processor. All calls from the thread that owns it."""

    kind: DeviceKind
    name: str  # the processor's
    max_streams: int
    latency: Latency  # for predictions

    @property
    def pinner(self) -> Pinner | None:
        """None where nothing is gained by it."""
        ...

    def torch_device(self) -> torch.device: ...

    def capture(self, program: Program, launches: LaunchList, *, passing: bool = False) -> CapturedGraph:
        """Raises CaptureError. Graphs of one device share memory: they must not replay at the same time.

        ``passing``: it will be closed soon, and shall leave no memory behind that the others keep.
        """
        ...

    def profile(self, program: Program) -> Profile:
        """Measure each operator alone, in program order."""
        ...

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        """A uint8 vector in host memory, from which copies to the device need no staging of their own."""
        ...

    def pinned(self, memory: bytes | memoryview) -> torch.Tensor | None:
        """``memory`` as a uint8 vector, where copies of it to the device need no staging; None where they do."""
        ...

    def mapped(self, static: torch.Tensor) -> torch.Tensor | None:
        """A static tensor's memory as a uint8 vector that the host may write and read between two replays, row after
        row; None where the host cannot, or where rows lie otherwise."""
        ...

    def stamp(self) -> Stamp:
        """Mark this point in the calling thread's current queue."""
        ...

    def beside(self) -> Queue | None:
        """A new queue; None where nothing runs beside the calling thread."""
        ...

    def occupy(self) -> None:
        """Keep this thread's queue busy for a moment: what is enqueued meanwhile runs without waiting for the CPU."""
        ...

    def synchronize(self) -> None:
        """Wait for everything this thread has enqueued."""
        ...

    def bind(self) -> AbstractContextManager[None]:
        """To be entered by the thread that uses the device: inference mode, and the device as the current one."""
        ...

    def tuning(self) -> AbstractContextManager[None]:
        """While entered, libraries choose their kernels by measuring. Shapes are fixed, so that pays; process-wide."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """Versions and hardware on which measurements depend."""
        ...

    def held_bytes(self) -> int:
        """What the captured graphs keep while idle: the memory that they were captured in, outputs included."""
        ...

    def trim(self) -> None:
        """Give back the memory that captures needed and replays do not."""
        ...

    def close(self) -> None:
        """Close what was captured, and give back streams or threads."""
        ...


def arena_block(graphs: Iterable[CapturedGraph], size: int, device: torch.device) -> torch.Tensor:
    """At least ``size`` bytes: the block of one of the device's graphs that has as many, else a new one.

    A graph keeps the block that it was captured with, whose addresses it replays.
    """
    blocks = [graph.arena for graph in graphs if graph.arena.nbytes >= size > 0]
    if blocks:
        return min(blocks, key=lambda block: block.nbytes)
    return torch.empty(size, dtype=torch.uint8, device=device)


def open_device(kind: str) -> Device:
    """``kind``: "cuda", "cpu", or "auto" (a GPU where there is one). Raises DeviceError where it is not to be had."""
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if kind == "auto" else kind
    if chosen == "cpu":
        from opara_server.engine.device_cpu import CpuDevice  # noqa: PLC0415 - only the chosen device is loaded

        return CpuDevice()
    if chosen != "cuda":
        raise DeviceError(f"unknown device {kind!r}: auto, cuda or cpu")
    if not torch.cuda.is_available():
        raise DeviceError("device cuda: PyTorch sees no GPU on this machine")
    from opara_server.engine.device_cuda import CudaDevice  # noqa: PLC0415

    return CudaDevice()
