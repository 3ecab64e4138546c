"""A model's lanes: sets of buffers through which its batches go to the device and their answers come back.

All lanes share one captured graph per bucket, and its static tensors. A batch that has the device to itself is copied
straight into these and out of them. One that is begun while another runs is copied into buffers of its lane's own, by a
queue beside, and from there into the static tensors once the other is through with them; its outputs leave likewise. So
the copies of one batch and the replay of another go on at the same time, and static tensors are touched in one queue
only, in order. Rows come to the device through the lane's host buffers, or directly where there are many in memory from
which the device can copy by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from opara_server.engine.device import CapturedGraph, Queue, Stamp
from opara_server.serving.batcher import Batch
from opara_server.serving.staging import Compiled, DeviceRows, HostRows

DIRECT_BYTES = 1 << 16  # of a request's rows: fewer are copied by the CPU in less time than a copy takes to enqueue
_WARM_UP_RUNS = 5

Direct = tuple[int, torch.Tensor]
"""From which byte on, and what."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one batch took, by the device's own clock. What it waited for another in between is not in it."""

    copy_in_s: float
    replay_s: float
    copy_out_s: float

    @property
    def total_s(self) -> float:
        return self.copy_in_s + self.replay_s + self.copy_out_s


@dataclass(frozen=True, slots=True)
class Run:
    """A batch under way, and when its copy in, its replay and its copy out begin and end."""

    batch: Batch
    copy_in: tuple[Stamp, Stamp]
    replay: tuple[Stamp, Stamp]
    copy_out: tuple[Stamp, Stamp]


class Lanes:
    """Of one model. Executor's thread, bound to its device, unless said otherwise."""

    def __init__(self, compiled: Compiled, count: int = 1) -> None:
        """``count``: of lanes."""
        self.device = compiled.device
        self._graphs = {bucket: compiled.graph(bucket) for bucket in compiled.buckets}
        self.count = count
        queues = (self.device.beside(), self.device.beside()) if count > 1 else (None, None)
        self._free = deque(Lane(compiled, self._graphs, *queues) for _ in range(self.count))

    def take(self) -> Lane:
        """One that no batch is in. Raises IndexError where there is none."""
        return self._free.popleft()

    def give_back(self, lane: Lane) -> None:
        """Its batch is answered."""
        self._free.append(lane)

    def switch(self, bucket: int, graph: CapturedGraph) -> None:
        """Batches of that size run on ``graph`` from now on. While none is under way."""
        self._graphs[bucket] = graph

    def warm(self, bucket: int) -> Timing:
        """Run rows of padding a few times through every lane, in both of its ways; the fastest run. While no batch is
        under way."""
        padding = Batch((), 0, bucket)
        runs = [lane.run(padding, alone=alone) for lane in self._free for alone in (False, True) * _WARM_UP_RUNS]
        return min((timing for _, timing in runs), key=lambda timing: timing.total_s)


class Lane:
    """Host buffers for the largest bucket and, where copies can overlap, device buffers.

    State by lifetime: all buffers live as long as the model; their contents as long as a batch, from ``begin`` until
    what ``end`` returned has been read: only then another may begin.
    """

    def __init__(
        self, compiled: Compiled, graphs: dict[int, CapturedGraph], into: Queue | None, out: Queue | None
    ) -> None:
        """``graphs``: by bucket, as they are when a batch begins. ``into``, ``out``: for copies beside replays."""
        device, buckets = compiled.device, compiled.buckets
        self._device = device
        self._graphs = graphs
        self._into, self._out = into, out
        self._inputs = tuple(HostRows(device, spec, buckets) for spec in compiled.inputs)
        self._outputs = tuple(HostRows(device, spec, buckets) for spec in compiled.outputs)
        beside = into is not None and out is not None
        self._arrived = tuple(DeviceRows(device, spec, buckets) for spec in compiled.inputs if beside)
        self._leaving = tuple(DeviceRows(device, spec, buckets) for spec in compiled.outputs if beside)

    def begin(self, batch: Batch, *, alone: bool) -> Run:
        """Enqueue a batch. ``alone``: no other is under way. Executor's thread; raises whatever the device does."""
        direct = self._fill(batch)
        graph = self._graphs[batch.bucket]
        try:
            if self._into is None or self._out is None or (alone and not any(direct)):
                return self._straight(batch, graph)
            return self._beside(batch, graph, direct, self._into, self._out)
        except BaseException:
            self._settle()
            raise

    def end(self, run: Run) -> tuple[list[tuple[memoryview, ...]], Timing]:
        """Wait for a batch. Per piece one raw buffer per output, which holds until the lane's next batch. Any thread;
        raises whatever the device does."""
        run.copy_out[1].wait()
        copy_in, replay, copy_out = (
            start.elapsed_us(end) / 1e6 for start, end in (run.copy_in, run.replay, run.copy_out)
        )
        return self._unpack(run.batch), Timing(copy_in, replay, copy_out)

    def run(self, batch: Batch, *, alone: bool = True) -> tuple[list[tuple[memoryview, ...]], Timing]:
        return self.end(self.begin(batch, alone=alone))

    def _straight(self, batch: Batch, graph: CapturedGraph) -> Run:
        begin = self._device.stamp()
        _copy([rows.tensors[batch.bucket] for rows in self._inputs], graph.inputs)
        there = self._device.stamp()
        graph.replay()
        done = self._device.stamp()
        _copy(graph.outputs, [rows.tensors[batch.bucket] for rows in self._outputs])
        return Run(batch, (begin, there), (there, done), (done, self._device.stamp()))

    def _beside(
        self, batch: Batch, graph: CapturedGraph, direct: Sequence[Sequence[Direct]], into: Queue, out: Queue
    ) -> Run:
        arrived = [rows.tensors[batch.bucket] for rows in self._arrived]
        leaving = [rows.tensors[batch.bucket] for rows in self._leaving]
        with into.entered():
            begin = self._device.stamp()
            for host, device, found in zip(self._inputs, self._arrived, direct, strict=True):
                _send(host.buffer, device.buffer, found, batch.bucket * host.row_bytes)
            there = self._device.stamp()
        there.hold()
        start = self._device.stamp()
        _copy(arrived, graph.inputs)
        graph.replay()
        _copy(graph.outputs, leaving)
        done = self._device.stamp()
        with out.entered():
            done.hold()
            leave = self._device.stamp()
            _copy(leaving, [rows.tensors[batch.bucket] for rows in self._outputs])
            end = self._device.stamp()
        return Run(batch, (begin, there), (start, done), (leave, end))

    def _fill(self, batch: Batch) -> list[list[Direct]]:
        """Request bytes -> host rows; the rest is padding. Returns, per input, what the device is to copy by itself."""
        found: list[list[Direct]] = []
        for index, rows in enumerate(self._inputs):
            row, direct = 0, []
            for piece in batch.pieces:
                tensor, size = piece.ticket.rows.tensors[index], rows.row_bytes
                source = self._direct(tensor, piece.count * size)
                if source is None:
                    rows.fill(row, tensor, piece.start, piece.count)
                else:
                    direct.append((row * size, source[piece.start * size : (piece.start + piece.count) * size]))
                row += piece.count
            rows.pad(row, batch.bucket)
            found.append(direct)
        return found

    def _direct(self, tensor: bytes | memoryview, nbytes: int) -> torch.Tensor | None:
        return self._device.pinned(tensor) if self._into is not None and nbytes >= DIRECT_BYTES else None

    def _settle(self) -> None:
        """Nothing that was enqueued may still use the buffers."""
        self._device.synchronize()
        for queue in (self._into, self._out):
            if queue is not None:
                with queue.entered():
                    self._device.synchronize()

    def _unpack(self, batch: Batch) -> list[tuple[memoryview, ...]]:
        parts, row = [], 0
        for piece in batch.pieces:
            parts.append(tuple(rows.take(row, piece.count) for rows in self._outputs))
            row += piece.count
        return parts


def _copy(sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source, non_blocking=True)


def _send(host: torch.Tensor, device: torch.Tensor, direct: Sequence[Direct], end: int) -> None:
    """Bytes up to ``end``: what is ``direct`` from where it lies, all between from ``host``."""
    at = 0
    for start, source in (*direct, (end, device[:0])):
        if at < start:
            device[at:start].copy_(host[at:start], non_blocking=True)
        if source.nbytes:
            device[start : start + source.nbytes].copy_(source, non_blocking=True)
        at = start + source.nbytes
