"""What was measured of each operator: plain data, made by ``profiler``, read by policies and the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True, slots=True)
class Kernel:
    """One GPU kernel of an operator, as the CUDA profiler saw it (duration in µs, shared memory in bytes per block)."""

    name: str
    duration_us: float
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    registers_per_thread: int
    shared_memory: int  # static + dynamic
    occupancy: float  # achieved occupancy estimate, 0..1

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def threads_per_block(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]


@dataclass(frozen=True, slots=True)
class Roofline:
    """What one processor (a GPU, or this machine's CPU) can do at most; both rates are measured."""

    flops_per_second: float
    bytes_per_second: float

    @property
    def ridge(self) -> float:
        """FLOPs per byte at which an operator turns from memory-bound to compute-bound."""
        return self.flops_per_second / self.bytes_per_second


@dataclass(frozen=True, slots=True)
class OperatorProfile:
    """``demand``: the largest share (0..1) of one processor's shared memory, registers or threads that a block of
    any of its kernels takes (paper, section III-B). ``footprint``: the share of the whole device that it occupies while
    it runs."""

    duration_us: float
    flops: int
    bytes: int
    demand: float = 0.0
    footprint: float = 1.0
    kernels: tuple[Kernel, ...] = ()


@dataclass(frozen=True)
class Profile:
    """Per operator of one operator graph, in its order."""

    operators: tuple[OperatorProfile, ...]
    roofline: Roofline

    @classmethod
    def uniform(cls, count: int) -> Profile:
        """Nothing known: every operator takes 1 µs, fills the device and counts as memory-bound."""
        return cls(tuple(OperatorProfile(1.0, 0, 1) for _ in range(count)), Roofline(1.0, 1.0))

    @cached_property
    def durations(self) -> tuple[float, ...]:
        return tuple(o.duration_us for o in self.operators)

    @cached_property
    def kernel_durations(self) -> tuple[tuple[float, ...], ...]:
        """Per operator those of its kernels; its own where none are known (on a CPU)."""
        return tuple(tuple(k.duration_us for k in o.kernels) or (o.duration_us,) for o in self.operators)

    @cached_property
    def bandwidth(self) -> tuple[float, ...]:
        """Per operator the share (0..1) of the memory bandwidth that it uses while it runs alone."""
        per_us = self.roofline.bytes_per_second / 1e6
        return tuple(min(1.0, o.bytes / (o.duration_us * per_us)) if o.duration_us else 0.0 for o in self.operators)

    def compute_bound(self, operator: int) -> bool:
        """Whether the operator's FLOPs per byte exceed the roofline's ridge."""
        seen = self.operators[operator]
        return seen.flops > self.roofline.ridge * seen.bytes

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Profile:
        return cls(tuple(_operator(o) for o in data["operators"]), Roofline(**data["roofline"]))


def _operator(data: dict[str, Any]) -> OperatorProfile:
    kernels: Sequence[dict[str, Any]] = data["kernels"]
    return OperatorProfile(**{**data, "kernels": tuple(_kernel(k) for k in kernels)})


def _kernel(data: dict[str, Any]) -> Kernel:
    grid, block = tuple(data["grid"]), tuple(data["block"])
    return Kernel(**{**data, "grid": grid, "block": block})
