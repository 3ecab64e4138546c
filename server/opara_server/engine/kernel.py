"""A compiled GPU kernel as plain data: what a program calls, a plan saves and a graph captures. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PARAMETER_TYPES = {"i1", "i8", "i16", "i32", "i64", "u1", "u8", "u16", "u32", "u64", "fp32", "fp64"}  # Triton's names
POINTER = "pointer"


@dataclass(frozen=True)
class KernelCode:
    """Machine code of one kernel: its ``name`` in ``cubin``, threads and dynamic shared memory (bytes) per block."""

    name: str
    cubin: bytes
    threads: int
    shared_bytes: int


@dataclass(frozen=True)
class KernelLaunch:
    """A kernel with its grid: called with the kernel's parameters, it launches on PyTorch's current stream.

    ``types``: POINTER (a tensor, by its address, or None) or one of PARAMETER_TYPES, per parameter. ``early``: it may
    start before the kernels ahead of it have ended (early_start.py). ``flops``: of matrix products, convolutions and
    attention, for the profile.
    """

    code: KernelCode
    grid: tuple[int, int, int]
    types: tuple[str, ...]
    early: bool = False
    flops: int = 0

    def __call__(self, *parameters: Any) -> None:
        """Raises DeviceError where the driver refuses."""
        from opara_server.engine.cuda_kernel import launch  # noqa: PLC0415 - the data is there without CUDA

        launch(self, parameters)

    def __str__(self) -> str:
        return self.code.name
