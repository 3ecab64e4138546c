"""A model's lanes: sets of buffers through which its batches go to the device and their answers come back.

All lanes share one captured graph per bucket, and its static tensors. A batch that has the device to itself is copied
straight into these and out of them; where they are in the host's own memory, a model's only lane fills and reads them
without a copy. One that is begun while another runs is copied into buffers of its lane's own, by a queue beside, and
from there into the static tensors once the other is through with them; its outputs leave likewise. So the copies of one
batch and the replay of another go on at the same time, and static tensors are touched in one queue only, in order. Rows
come to the device through the lane's host buffers, or directly where there are many in memory from which the device can
copy by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from opara_server.engine.device import CapturedGraph, Queue, Stamp
from opara_server.engine.spec import TensorSpec
from opara_server.observe.tracing import Moments
from opara_server.serving.batcher import Batch
from opara_server.serving.staging import Compiled, DeviceRows, HostBuffer, HostRows
from opara_server.serving.transfers import Direct, Transfer, receive, send

DIRECT_BYTES = 1 << 16  # of a request's rows: fewer are copied by the CPU in less time than a copy takes to enqueue
_WARM_UP_RUNS = 5

Own = Mapping[tuple[int, int], memoryview]
"""Answers that the device writes to where they belong, by piece and output."""

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(slots=True)  # not frozen, as Rows: every batch makes one, and a Run
class Timing:
    """How long one batch took, by the device's own clock. What it waited for another in between is not in it."""

    copy_in_s: float
    replay_s: float
    copy_out_s: float

    @property
    def total_s(self) -> float:
        return self.copy_in_s + self.replay_s + self.copy_out_s


@dataclass(frozen=True, slots=True)
class Port:
    """A captured graph as a lane sees it: rows in host memory, and, of each static tensor that is elsewhere, where they
    are copied from or to: (host, static). Of an output that is not static ``outputs`` has None."""

    graph: CapturedGraph
    inputs: tuple[HostRows, ...]
    arriving: tuple[Pair, ...]
    outputs: tuple[HostRows | None, ...]
    leaving: tuple[Pair, ...]


@dataclass(slots=True)
class Run:
    """A batch under way, where its answers will be, and when its copy in, its replay and its copy out begin and end."""

    batch: Batch
    outputs: tuple[HostRows, ...]
    own: Own
    copy_in: tuple[Stamp, Stamp]
    replay: tuple[Stamp, Stamp]
    copy_out: tuple[Stamp, Stamp]

    def moments(self, ended: float) -> Moments:
        """When all that was, once it is over, reckoned back from ``ended``, when that was seen."""
        last = self.copy_out[1]
        copy_in, replay, copy_out = (
            (ended - begin.elapsed_us(last) / 1e6, ended - end.elapsed_us(last) / 1e6)
            for begin, end in (self.copy_in, self.replay, self.copy_out)
        )
        return Moments(copy_in, replay, copy_out)


class Lanes:
    """Of one model. Executor's thread, bound to its device, unless said otherwise."""

    def __init__(self, compiled: Compiled, count: int = 1) -> None:
        """``count``: of lanes."""
        self.device = compiled.device
        self.count = count
        queues = (self.device.beside(), self.device.beside()) if count > 1 else (None, None)
        self._free = deque(Lane(compiled, *queues, shared=count > 1) for _ in range(self.count))

    def take(self) -> Lane:
        """One that no batch is in. Raises IndexError where there is none."""
        return self._free.popleft()

    def give_back(self, lane: Lane) -> None:
        """Its batch is answered."""
        self._free.append(lane)

    def switch(self, bucket: int, graph: CapturedGraph) -> None:
        """Batches of that size run on ``graph`` from now on. While none is under way."""
        for lane in self._free:
            lane.switch(bucket, graph)

    def anywhere(self, bucket: int) -> bool:
        """Whether any thread may run batches of that size, one after the other. While none is under way."""
        return self.count == 1 and self._free[0].anywhere(bucket)

    def warm(self, bucket: int) -> Timing:
        """Run rows of padding a few times through every lane, in both of its ways; the fastest run. While no batch is
        under way."""
        padding = Batch((), 0, bucket)
        runs = [lane.run(padding, alone=alone) for lane in self._free for alone in (False, True) * _WARM_UP_RUNS]
        return min((timing for _, timing in runs), key=lambda timing: timing.total_s)


class Lane:
    """Host buffers for the largest bucket, where static tensors are not in the host's own memory, and, where copies can
    overlap, device buffers.

    State by lifetime: all buffers live as long as the model; their contents as long as a batch, from ``begin`` until
    what ``end`` returned has been read: only then another may begin.
    """

    def __init__(self, compiled: Compiled, into: Queue | None, out: Queue | None, *, shared: bool) -> None:
        """``into``, ``out``: for copies beside replays. ``shared``: whether other lanes use the same graphs."""
        device, buckets = compiled.device, compiled.buckets
        self._device = device
        self._into, self._out = into, out
        self._shared = shared
        self._inputs = tuple(HostBuffer(device, spec, buckets) for spec in compiled.inputs)
        self._outputs = tuple(HostBuffer(device, spec, buckets) for spec in compiled.outputs)
        beside = into is not None and out is not None
        self._arrived = tuple(DeviceRows(device, spec, buckets) for spec in compiled.inputs if beside)
        self._leaving = tuple(DeviceRows(device, spec, buckets) for spec in compiled.outputs if beside)
        self._ports: dict[int, Port] = {}
        for bucket in buckets:
            self.switch(bucket, compiled.graph(bucket))

    def switch(self, bucket: int, graph: CapturedGraph) -> None:
        """Batches of that size run on ``graph`` from now on. While none is under way."""
        arriving: list[Pair] = []
        leaving: list[Pair] = []
        inputs = tuple(
            self._place(bucket, buffer, static, arriving)
            for buffer, static in zip(self._inputs, graph.inputs, strict=True)
        )
        outputs = tuple(
            None if index in graph.fresh else self._place(bucket, buffer, static, leaving)
            for index, (buffer, static) in enumerate(zip(self._outputs, graph.outputs, strict=True))
        )
        self._ports[bucket] = Port(graph, inputs, tuple(arriving), outputs, tuple(leaving))

    def anywhere(self, bucket: int) -> bool:
        """See Lanes."""
        return self._ports[bucket].graph.anywhere

    def _place(self, bucket: int, buffer: HostBuffer, static: torch.Tensor, copied: list[Pair]) -> HostRows:
        """Rows in a static tensor itself, where the host can use it and no other lane does; else in its buffer, and
        then the pair is added to ``copied``."""
        memory = None if self._shared else self._device.mapped(static)
        if memory is not None:
            return HostRows(memory, buffer.spec)
        copied.append((buffer.tensors[bucket], static))
        return buffer.rows

    def _found(self, port: Port) -> tuple[HostRows, ...]:
        """Where the answers of the replay that was just enqueued will be."""
        found = zip(port.outputs, port.graph.outputs, self._outputs, strict=True)
        return tuple([rows or self._fresh(output, buffer.spec) for rows, output, buffer in found])

    def _fresh(self, output: torch.Tensor, spec: TensorSpec) -> HostRows:
        memory = self._device.mapped(output)
        assert memory is not None, "what is not static lies in rows"
        return HostRows(memory, spec)

    def begin(self, batch: Batch, *, alone: bool) -> Run:
        """Enqueue a batch. ``alone``: no other is under way. Executor's thread; raises whatever the device does."""
        port = self._ports[batch.bucket]
        direct = self._fill(batch, port.inputs)
        try:
            if self._into is None or self._out is None:
                return self._straight(batch, port)
            own, answered = self._answered(batch, port)
            if alone and not own and not any(direct):
                return self._straight(batch, port)
            return self._beside(batch, port, direct, own, answered, self._into, self._out)
        except BaseException:
            self._settle()
            raise

    def end(self, run: Run) -> tuple[list[tuple[memoryview, ...]], Timing]:
        """Wait for a batch. Per piece one raw buffer per output, which holds until the lane's next batch. Any thread;
        raises whatever the device does."""
        run.copy_out[1].wait()
        return _unpack(run), Timing(_seconds(run.copy_in), _seconds(run.replay), _seconds(run.copy_out))

    def run(self, batch: Batch, *, alone: bool = True) -> tuple[list[tuple[memoryview, ...]], Timing]:
        return self.end(self.begin(batch, alone=alone))

    def _straight(self, batch: Batch, port: Port) -> Run:
        begin = there = self._device.stamp()
        for host, static in port.arriving:
            static.copy_(host, non_blocking=True)
        if port.arriving:
            there = self._device.stamp()
        port.graph.replay()
        done = end = self._device.stamp()
        for host, static in port.leaving:
            host.copy_(static, non_blocking=True)
        if port.leaving:
            end = self._device.stamp()
        return Run(batch, self._found(port), {}, (begin, there), (there, done), (done, end))

    def _beside(
        self,
        batch: Batch,
        port: Port,
        direct: Sequence[Sequence[Direct]],
        own: Own,
        answered: Sequence[Sequence[Direct]],
        into: Queue,
        out: Queue,
    ) -> Run:
        graph = port.graph
        arrived = [rows.tensors[batch.bucket] for rows in self._arrived]
        leaving = [rows.tensors[batch.bucket] for rows in self._leaving]
        begin = into.stamp()
        with into.entered():
            sent = zip(self._arrived, port.inputs, direct, strict=True)
            send([Transfer(device, host, batch.bucket, found) for device, host, found in sent])
        there = into.stamp()
        there.hold()
        start = self._device.stamp()
        _copy(arrived, graph.inputs)
        graph.replay()
        _copy(graph.outputs, leaving)
        done = self._device.stamp()
        outputs = self._found(port)
        done.hold(out)
        leave = out.stamp()
        with out.entered():
            received = zip(self._leaving, outputs, answered, strict=True)
            receive([Transfer(device, host, batch.rows, found) for device, host, found in received])
        end = out.stamp()
        return Run(batch, outputs, own, (begin, there), (start, done), (leave, end))

    def _fill(self, batch: Batch, inputs: Sequence[HostRows]) -> list[list[Direct]]:
        """Request bytes -> host rows; the rest is padding. Returns, per input, what the device is to copy by itself."""
        found: list[list[Direct]] = []
        for index, rows in enumerate(inputs):
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

    def _answered(self, batch: Batch, port: Port) -> tuple[Own, list[list[Direct]]]:
        """What the device is to write by itself: whole answers that are large, to where they belong. In all, and per
        output."""
        own: dict[tuple[int, int], memoryview] = {}
        found: list[list[Direct]] = []
        for index, rows in enumerate(port.outputs):
            row, direct = 0, []
            for number, piece in enumerate(batch.pieces):
                into, count = piece.ticket.rows.into, piece.count
                if rows is not None and into and count == piece.ticket.rows.count:
                    target = self._direct(into[index], count * rows.row_bytes)
                    if target is not None:
                        own[number, index] = into[index]
                        direct.append((row * rows.row_bytes, target))
                row += count
            found.append(direct)
        return own, found

    def _direct(self, tensor: bytes | memoryview, nbytes: int) -> torch.Tensor | None:
        return self._device.pinned(tensor) if self._into is not None and nbytes >= DIRECT_BYTES else None

    def _settle(self) -> None:
        """Nothing that was enqueued may still use the buffers."""
        self._device.synchronize()
        for queue in (self._into, self._out):
            if queue is not None:
                with queue.entered():
                    self._device.synchronize()


def _unpack(run: Run) -> list[tuple[memoryview, ...]]:
    parts, row, own = [], 0, run.own
    for number, piece in enumerate(run.batch.pieces):
        count = piece.count
        if own:
            part = [own.get((number, index)) or rows.take(row, count) for index, rows in enumerate(run.outputs)]
        else:
            part = [rows.take(row, count) for rows in run.outputs]
        parts.append(tuple(part))
        row += count
    return parts


def _seconds(stamps: tuple[Stamp, Stamp]) -> float:
    return stamps[0].elapsed_us(stamps[1]) / 1e6


def _copy(sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source, non_blocking=True)
