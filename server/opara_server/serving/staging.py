"""Buffers for the rows of one input or output, in host memory and on the device, and what is needed of a device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from math import prod
from typing import Protocol

import torch

from opara_server.engine.compiled import Behind
from opara_server.engine.device import CapturedGraph, Pinner, Queue, Stamp
from opara_server.engine.intra_op import intra_op_threads
from opara_server.engine.plan import Plan
from opara_server.engine.plan_store import SavedPlan
from opara_server.engine.spec import TensorSpec
from opara_server.engine.steps import Steps


class LaneDevice(Protocol):
    """What serving needs of engine.device.Device."""

    @property
    def pinner(self) -> Pinner | None: ...
    def torch_device(self) -> torch.device: ...
    def host_buffer(self, nbytes: int) -> torch.Tensor: ...
    def pinned(self, memory: bytes | memoryview) -> torch.Tensor | None: ...
    def mapped(self, static: torch.Tensor) -> torch.Tensor | None: ...
    def stamp(self) -> Stamp: ...
    def beside(self) -> Queue | None: ...
    def synchronize(self) -> None: ...
    def bind(self) -> AbstractContextManager[None]: ...


class Compiled(Protocol):
    """What serving needs of engine.build.CompiledModel."""

    @property
    def device(self) -> LaneDevice: ...
    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def buckets(self) -> tuple[int, ...]: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def behind(self) -> Behind | None: ...
    def graph(self, bucket: int) -> CapturedGraph: ...
    def improve(self, found: SavedPlan, bucket: int) -> Steps[CapturedGraph]: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...


class HostRows:
    """Rows of one input or output in host memory, as bytes. ``memory``: theirs, uint8."""

    def __init__(self, memory: torch.Tensor, spec: TensorSpec) -> None:
        self.row_bytes = spec.row_bytes
        self._row_elements = prod(spec.shape)
        self._padding = spec.padding
        self.memory = memory
        self._bytes = memory.numpy().data
        self._view = self._bytes.toreadonly()
        self._elements = memory.view(getattr(torch, spec.dtype))

    def fill(self, row: int, source: bytes | memoryview, start: int, count: int) -> None:
        """Copy ``count`` rows of ``source``, from its row ``start`` on, to ``row``."""
        size = self.row_bytes
        if size:
            rows = memoryview(source)[start * size : (start + count) * size]
            self._bytes[row * size : (row + count) * size] = rows

    def pad(self, start: int, end: int) -> None:
        """Rows ``start`` to ``end`` become the spec's padding."""
        if start < end:
            with intra_op_threads(1):  # others would wait for more work for milliseconds, at the cost of all cores
                self._elements[start * self._row_elements : end * self._row_elements] = self._padding

    def take(self, row: int, count: int) -> memoryview:
        """What the memory holds there, until the next batch."""
        return self._view[row * self.row_bytes : (row + count) * self.row_bytes]


class OwnRows(HostRows):
    """Rows in memory that nobody else writes to: padding stays there until requests come to its place."""

    def __init__(self, memory: torch.Tensor, spec: TensorSpec, count: int) -> None:
        """``count``: of all rows."""
        super().__init__(memory, spec)
        self._used = count  # from here on all is padding

    def fill(self, row: int, source: bytes | memoryview, start: int, count: int) -> None:
        super().fill(row, source, start, count)
        self._used = max(self._used, row + count)

    def pad(self, start: int, end: int) -> None:
        super().pad(start, min(end, self._used))
        if end >= self._used:
            self._used = min(start, self._used)


class HostBuffer:
    """A lane's host memory for one input or output, for the largest bucket; taken once it is needed."""

    def __init__(self, device: LaneDevice, spec: TensorSpec, buckets: Sequence[int]) -> None:
        self.spec = spec
        self._device, self._buckets = device, buckets

    @cached_property
    def rows(self) -> OwnRows:
        most = self._buckets[-1]
        return OwnRows(self._device.host_buffer(self.spec.row_bytes * most), self.spec, most)

    @cached_property
    def tensors(self) -> dict[int, torch.Tensor]:
        """Per bucket: what the device copies."""
        return _by_bucket(self.rows.memory, self.spec, self._buckets)


class DeviceRows:
    """Rows of one input or output on the device, as bytes and, per bucket, as a tensor."""

    def __init__(self, device: LaneDevice, spec: TensorSpec, buckets: Sequence[int]) -> None:
        self.buffer = torch.empty(spec.row_bytes * buckets[-1], dtype=torch.uint8, device=device.torch_device())
        self.tensors = _by_bucket(self.buffer, spec, buckets)


def _by_bucket(buffer: torch.Tensor, spec: TensorSpec, buckets: Sequence[int]) -> dict[int, torch.Tensor]:
    elements = buffer.view(getattr(torch, spec.dtype))
    return {size: elements[: size * prod(spec.shape)].view(size, *spec.shape) for size in buckets}
