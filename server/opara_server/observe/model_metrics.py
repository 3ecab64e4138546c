"""What is counted of one model's batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from opara_server.engine.plan import Plan
from opara_server.observe.tracing import BatchSpan

if TYPE_CHECKING:
    from opara_server.observe.metrics import Metrics


class ModelMetrics:
    """One model's children of every metric, looked up once: labels() costs more than counting. Only the executor's
    thread counts here."""

    def __init__(self, metrics: Metrics, plan: Plan) -> None:
        name = plan.model
        self._queue = metrics.queue_seconds.labels(name)
        self._copy_in = metrics.copy_in_seconds.labels(name)
        self._copy_out = metrics.copy_out_seconds.labels(name)
        self._rows = metrics.rows.labels(name)
        self._batches = metrics.batches.labels(name)
        self._padded = metrics.padded_rows.labels(name)
        sizes = {b.batch_size: (name, str(b.batch_size)) for b in plan.buckets}
        self._replay = {size: metrics.replay_seconds.labels(*labels) for size, labels in sizes.items()}
        self._replays = {b.batch_size: metrics.replays.labels(*sizes[b.batch_size], b.policy) for b in plan.buckets}

    def waited(self, seconds: Sequence[float]) -> None:
        """How long each request of a batch waited for it."""
        self._queue.observe_all(seconds)

    def ran(self, bucket: int, rows: int, copy_in_s: float, replay_s: float, copy_out_s: float) -> None:
        """One batch of ``rows`` real rows ran."""
        self._batches.value += 1
        self._rows.value += rows
        self._padded.value += bucket - rows
        self._replays[bucket].value += 1
        self._copy_in.observe(copy_in_s)
        self._replay[bucket].observe(replay_s)
        self._copy_out.observe(copy_out_s)

    def sampled(self, batch: BatchSpan) -> None:
        """One of those batches had requests that are sampled."""
        assert batch.moments is not None
        for span, arrived in batch.sampled:
            if arrived is not None:
                self._queue.exemplify(batch.taken - arrived, span.trace_id)
        trace_id = batch.sampled[0].span.trace_id
        distributions = self._copy_in, self._replay[batch.bucket], self._copy_out
        for distribution, (begin, end) in zip(distributions, batch.moments, strict=True):
            distribution.exemplify(end - begin, trace_id)
