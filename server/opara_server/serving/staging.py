"""A lane: the buffers through which a batch goes to the device and its answers come back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Protocol

import numpy as np
import torch

from opara_server.engine.compiled import Behind
from opara_server.engine.device import CapturedGraph, Stamp
from opara_server.engine.plan import Plan
from opara_server.engine.plan_store import SavedPlan
from opara_server.engine.spec import TensorSpec
from opara_server.engine.steps import Steps
from opara_server.serving.batcher import Batch

_WARM_UP_RUNS = 5


class LaneDevice(Protocol):
    """What serving needs of engine.device.Device."""

    def host_buffer(self, nbytes: int) -> torch.Tensor: ...
    def stamp(self) -> Stamp: ...
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


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one batch took, by the device's own clock."""

    copy_in_s: float
    replay_s: float
    copy_out_s: float

    @property
    def total_s(self) -> float:
        return self.copy_in_s + self.replay_s + self.copy_out_s


class Lane:
    """Host buffers for the largest bucket, and the static tensors of every captured graph of one model.

    State by lifetime: all buffers live as long as the model; their contents as long as one call of ``run``, which
    returns only when the device has finished: nothing is overwritten that is still read. What it returns are views of
    the output buffers: answers are made of them before the next batch.
    """

    def __init__(self, compiled: Compiled) -> None:
        """To be called on the thread that owns the device, bound to it."""
        self.device = compiled.device
        self._graphs = {bucket: compiled.graph(bucket) for bucket in compiled.buckets}
        self._inputs = tuple(HostRows(self.device, spec, compiled.buckets) for spec in compiled.inputs)
        self._outputs = tuple(HostRows(self.device, spec, compiled.buckets) for spec in compiled.outputs)

    def run(self, batch: Batch) -> tuple[list[tuple[memoryview, ...]], Timing]:
        """Per piece of the batch one raw buffer per output, which holds until the next batch. Raises whatever the
        device does."""
        try:
            stamps = [self.device.stamp()]
            self.copy_in(batch)
            stamps.append(self.device.stamp())
            self._graphs[batch.bucket].replay()
            stamps.append(self.device.stamp())
            self.copy_out(batch.bucket)
            stamps.append(self.device.stamp())
        finally:
            self.device.synchronize()  # also after an error: the next batch must not meet this one's copies
        copy_in, replay, copy_out = (a.elapsed_us(b) / 1e6 for a, b in pairwise(stamps))
        return self._unpack(batch), Timing(copy_in, replay, copy_out)

    def switch(self, bucket: int, graph: CapturedGraph) -> None:
        """Batches of that size run on ``graph`` from now on. Between batches."""
        self._graphs[bucket] = graph

    def warm(self, bucket: int) -> float:
        """Run rows of padding a few times; the seconds of the fastest run."""
        return min(self.run(Batch((), 0, bucket))[1].total_s for _ in range(_WARM_UP_RUNS))

    def copy_in(self, batch: Batch) -> None:
        """Request bytes -> host rows -> static inputs of the batch's bucket; the rest is padding."""
        for index, (host, static) in enumerate(zip(self._inputs, self._graphs[batch.bucket].inputs, strict=True)):
            row = 0
            for piece in batch.pieces:
                host.fill(row, piece.ticket.rows.tensors[index], piece.start, piece.count)
                row += piece.count
            host.pad(row, batch.bucket)
            static.copy_(host.tensors[batch.bucket], non_blocking=True)

    def copy_out(self, bucket: int) -> None:
        """Static outputs -> host rows; they are there once the device is synchronised."""
        for host, static in zip(self._outputs, self._graphs[bucket].outputs, strict=True):
            host.tensors[bucket].copy_(static, non_blocking=True)

    def _unpack(self, batch: Batch) -> list[tuple[memoryview, ...]]:
        parts, row = [], 0
        for piece in batch.pieces:
            parts.append(tuple(host.take(row, piece.count) for host in self._outputs))
            row += piece.count
        return parts


class HostRows:
    """Rows of one input or output in host memory, as bytes and, per bucket, as the tensor that the device copies."""

    def __init__(self, device: LaneDevice, spec: TensorSpec, buckets: Sequence[int]) -> None:
        self._row_bytes = spec.row_bytes
        self._row_elements = prod(spec.shape)
        self._padding = spec.padding
        buffer = device.host_buffer(spec.row_bytes * buckets[-1])
        self._bytes = buffer.numpy()
        self._view = self._bytes.data.toreadonly()
        self._elements = buffer.view(getattr(torch, spec.dtype))
        self.tensors = {
            bucket: buffer[: bucket * spec.row_bytes].view(getattr(torch, spec.dtype)).view(bucket, *spec.shape)
            for bucket in buckets
        }

    def fill(self, row: int, source: bytes | memoryview, start: int, count: int) -> None:
        """Copy ``count`` rows of ``source``, from its row ``start`` on, to ``row``."""
        size = self._row_bytes
        if size:
            rows = np.frombuffer(source, dtype=np.uint8)[start * size : (start + count) * size]
            self._bytes[row * size : (row + count) * size] = rows

    def pad(self, start: int, end: int) -> None:
        """Rows ``start`` to ``end`` become the spec's padding."""
        if start < end:
            self._elements[start * self._row_elements : end * self._row_elements] = self._padding

    def take(self, row: int, count: int) -> memoryview:
        """What the buffer holds there, until the next batch."""
        return self._view[row * self._row_bytes : (row + count) * self._row_bytes]
