"""What bounds a server of a model on this device: its graphs, its copies, and its batching without any network.

    python -m bench.end_to_end.bare MODELS_FOLDER CACHE_FOLDER googlenet --rows 1 --seconds 2

Prints JSON. Run after a server has saved the plan: the graphs are the same then.
"""

from __future__ import annotations

import json
import mmap
import statistics
import threading
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from opara_server.engine.build import compile_model
from opara_server.engine.compiled import CompiledModel
from opara_server.engine.device import Device
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import static_inputs
from opara_server.observe.metrics import Metrics
from opara_server.serving.batcher import Batch, Batcher, Piece, Rows, Ticket
from opara_server.serving.errors import ServingError
from opara_server.serving.executor import Executor, Worker
from opara_server.serving.lanes import Lane, Lanes
from opara_server.serving.limits import Limits
from opara_server.serving.repository import Entry
from opara_server.serving.staging import Compiled, LaneDevice

RUNS = 400


def main(
    models: Path,
    cache: Path,
    model: str,
    rows: Annotated[int, typer.Option(help="Of each request.")] = 1,
    seconds: float = 2.0,
    lanes: Annotated[list[int] | None, typer.Option(help="Default: 1, 2 and 3.")] = None,
) -> None:
    entry = Entry(model, models / model)
    config = entry.config()
    specs = [one.spec for one in config.inputs]
    compiled = compile_model(model, entry.module(config), specs, config.device, config.build_options(cache))
    payload = Rows(tuple(_bytes(spec, rows) for spec in specs), rows)
    pinned = Rows(tuple(_pinned(compiled.device, tensor) for tensor in payload.tensors), rows)
    report = {
        "buckets": {str(bucket): _bucket(compiled, bucket, payload, seconds) for bucket in compiled.buckets},
        "lanes": {str(count): _saturated(compiled, count, payload, seconds) for count in lanes or (1, 2, 3)},
        "pinned": {str(count): _saturated(compiled, count, pinned, seconds) for count in lanes or (1, 2, 3)},
    }
    print(json.dumps(report))


def _bucket(compiled: CompiledModel, bucket: int, payload: Rows, seconds: float) -> dict[str, float]:
    """A batch that is alone: by the host's clock from its bytes to its answer's, and by the device's what of it is
    copies and replay; replays back to back, without copies; and what a batch has of the device's main queue, straight
    and beside another."""
    with compiled.device.bind():
        lanes = Lanes(compiled, 1)
        lane = lanes.take()
        batch = _batch(compiled, bucket, payload)
        alone, copy_in, replay, copy_out = [], [], [], []
        for _ in range(RUNS):
            begin = time.perf_counter()
            parts, timing = lane.run(batch)
            _copied = [bytes(buffer) for part in parts for buffer in part]  # as a transport does
            alone.append(time.perf_counter() - begin)
            copy_in.append(timing.copy_in_s)
            replay.append(timing.replay_s)
            copy_out.append(timing.copy_out_s)
        medians = [statistics.median(times[RUNS // 10 :]) * 1e6 for times in (alone, copy_in, replay, copy_out)]
        graph = compiled.graph(bucket)
        count = max(10, int(seconds / 4 / (medians[2] / 1e6)))
        compiled.device.synchronize()
        begin = time.perf_counter()
        for number in range(count):
            graph.replay()
            if number % 64 == 63:
                compiled.device.synchronize()
        compiled.device.synchronize()
        rate = count * bucket / (time.perf_counter() - begin)
        lane = Lanes(compiled, 2).take()
        medians += [_on_the_device_us(compiled.device, lane, batch, alone=alone) for alone in (True, False)]
    names = ("alone_us", "copy_in_us", "replay_us", "copy_out_us", "straight_us", "beside_us")
    return dict(zip(names, (round(us, 1) for us in medians), strict=True)) | {"rows_per_s": round(rate, 1)}


def _on_the_device_us(device: Device, lane: Lane, batch: Batch, *, alone: bool) -> float:
    """The replay and, unless ``alone``, the copies between the lane's own buffers and those of the graph, which all
    lanes share: by the device's clock, without waiting for the host."""
    times = []
    for _ in range(RUNS):
        device.occupy()
        times.append(lane.run(batch, alone=alone)[1].replay_s)
    return statistics.median(times[RUNS // 10 :]) * 1e6


def _saturated(compiled: Compiled, count: int, payload: Rows, seconds: float) -> dict[str, float]:
    """Requests enough in flight, through the batcher, ``count`` lanes and back."""
    metrics, executor = Metrics(), Executor()
    name = compiled.plan.model
    metrics.add_model(name)
    told = metrics.model(compiled.plan)
    batcher = Batcher(compiled.inputs, Limits(compiled.buckets, 10**6, 10**9), told, executor.wake)
    executor.start()

    def attach() -> None:
        executor.bind(compiled.device)
        lanes = Lanes(compiled, count)
        for bucket in compiled.buckets:
            timing = lanes.warm(bucket)
            batcher.ran(bucket, timing.total_s, timing.replay_s)
        executor.attach(Worker(name, batcher, lanes, told))

    executor.run(attach).result()
    load = _Load(batcher, payload)
    load.start(max(2, 4 * compiled.buckets[-1] // payload.count))
    time.sleep(seconds / 4)
    before, answered, begin = _replayed_s(metrics, name), load.answered, time.perf_counter()
    time.sleep(seconds)
    while load.answered == answered:  # batches take longer, or this process was held up
        time.sleep(seconds / 4)
    replayed, answered = _replayed_s(metrics, name) - before, load.answered - answered
    passed = time.perf_counter() - begin
    load.end()
    executor.stop(10.0)
    return {
        "rows_per_s": round(answered * payload.count / passed, 1),
        "idle_over_replay": round((passed - replayed) / replayed, 4),
    }


class _Load:
    """So many requests in flight: each answer is copied, and asks again."""

    def __init__(self, batcher: Batcher, payload: Rows) -> None:
        self.answered = 0
        self.copied: tuple[bytes, ...] = ()
        self._batcher = batcher
        self._payload = payload
        self._ended = threading.Event()

    def start(self, count: int) -> None:
        for _ in range(count):
            self._batcher.submit(self._payload, None, self._done)

    def end(self) -> None:
        self._ended.set()

    def _done(self, answer: Rows | ServingError) -> None:
        if isinstance(answer, ServingError):
            raise answer
        self.copied = tuple(map(bytes, answer.tensors))  # as a transport does
        self.answered += 1
        if not self._ended.is_set():
            self._batcher.submit(self._payload, None, self._done)


def _batch(compiled: Compiled, bucket: int, payload: Rows) -> Batch:
    """Full of rows of requests like ``payload``, the last one cut."""
    batcher = Batcher(compiled.inputs, Limits((bucket,), bucket, bucket), Metrics().model(compiled.plan), lambda: None)
    pieces, left = [], bucket
    while left:
        count = min(left, payload.count)
        pieces.append(Piece(Ticket(batcher, payload, None, lambda _: None, 0.0), 0, count))
        left -= count
    return Batch(tuple(pieces), bucket, bucket)


def _bytes(spec: TensorSpec, rows: int) -> bytes:
    (tensor,) = static_inputs((spec,), rows, torch.device("cpu"), channels_last=False)
    return tensor.view(torch.uint8).numpy().tobytes()


def _pinned(device: LaneDevice, tensor: bytes | memoryview) -> memoryview:
    """The same in memory that the device can copy from, if there is such, as that of front-end workers is. For good."""
    buffer = memoryview(mmap.mmap(-1, len(tensor)))
    buffer[:] = tensor
    if device.pinner is not None:
        device.pinner(buffer)
    return buffer


def _replayed_s(metrics: Metrics, model: str) -> float:
    families = metrics.registry.collect()
    samples = (sample for family in families for sample in family.samples)
    return sum(s.value for s in samples if s.name == "opara_replay_seconds_sum" and s.labels.get("model") == model)


if __name__ == "__main__":
    typer.run(main)
