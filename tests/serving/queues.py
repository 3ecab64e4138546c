"""A batcher on a clock of its own: the test takes the executor's part."""

from __future__ import annotations

from typing import Any

from opara_server.engine.spec import TensorSpec
from opara_server.observe.metrics import Metrics
from opara_server.serving.batcher import Batch, Batcher
from opara_server.serving.limits import Limits
from opara_server.serving.rows import Rows
from opara_server.serving.turns import InFlight
from tests.serving.fakes import Answer, X, make_plan, rows_of


class Queue:
    def __init__(
        self,
        max_rows: int = 64,
        max_queue_rows: int = 100,
        delay_s: float = 0.0,
        inputs: tuple[TensorSpec, ...] = (X,),
        buckets: tuple[int, ...] = (1, 4, 8),
        in_flight: InFlight | None = None,
        **limits: Any,
    ) -> None:
        self.now = 1000.0
        self.woken = 0
        set_limits = Limits(buckets, max_rows, max_queue_rows, delay_s, **limits)
        self._metrics = Metrics()
        metrics = self._metrics.model(make_plan("m", buckets))
        self.batcher = Batcher(inputs, set_limits, metrics, self._wake, lambda: self.now, in_flight)
        self._metrics.watch_queue("m", lambda: self.batcher.waiting_rows)

    def _wake(self) -> None:
        self.woken += 1

    def depth(self) -> float | None:
        """Rows that wait, as the metrics tell."""
        return self._metrics.registry.get_sample_value("opara_queue_depth_rows", {"model": "m"})

    def submit(
        self, rows: Rows | int, deadline: float | None = None, *, priority: int = 0, timeout_us: int = 0
    ) -> Answer:
        answer = Answer()
        sent = rows_of(rows) if isinstance(rows, int) else rows
        self.batcher.submit(sent, deadline, answer, priority=priority, timeout_us=timeout_us)
        return answer

    def take(self) -> Batch:
        batch = self.batcher.take()
        assert batch is not None
        return batch

    def answer(self, batch: Batch) -> None:
        """Every row is answered with its own bytes, in buffers that are overwritten afterwards."""
        own = (bytearray(p.ticket.rows.tensors[0][p.start * 8 : (p.start + p.count) * 8]) for p in batch.pieces)
        buffers = list(own)
        self.batcher.answer(batch, [(memoryview(buffer),) for buffer in buffers])
        for buffer in buffers:
            buffer[:] = bytes([0xAB]) * len(buffer)


def shape(batch: Batch) -> tuple[list[int], int]:
    return [piece.count for piece in batch.pieces], batch.bucket
