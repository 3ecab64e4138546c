"""What a tracer is told of batches, with one lane and with several."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise

import pytest

from opara_server.observe.tracing import BatchSpan, Call, RequestSpan, SpanContext
from opara_server.serving.batcher import Batcher
from tests.serving.fakes import PATIENCE_S, Answer, Core, FakeCompiled, rows_of, wait_for
from tests.serving.queued import QueuedDevice


class Told:
    """A tracer that keeps what it is told."""

    def __init__(self) -> None:
        self.batches: list[BatchSpan] = []

    def begin(self, method: str, call: Call) -> RequestSpan | None:
        raise NotImplementedError

    def batch(self, batch: BatchSpan) -> None:
        self.batches.append(batch)

    def close(self) -> None:
        """It keeps them."""


@pytest.fixture
def device() -> Iterator[QueuedDevice]:
    device = QueuedDevice()
    yield device
    device.gate.set()
    device.close()


def submit(batcher: Batcher, count: int, span_id: int = 0) -> Answer:
    """``span_id``: 0: not sampled."""
    answer = Answer()
    batcher.submit(rows_of(count), None, answer, span=SpanContext(7, span_id) if span_id else None)
    return answer


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_times_of_a_batch_are_in_order(core: Core, device: QueuedDevice, lanes: int) -> None:
    told = Told()
    batcher = core.serve(FakeCompiled(device=device), lanes=lanes, tracer=told)
    answers = [submit(batcher, 1 + number % 8, span_id=number + 1) for number in range(40)]
    assert all(answer.outcome() for answer in answers)
    assert core.executor.stop(PATIENCE_S)
    assert sorted(s.span.span_id for batch in told.batches for s in batch.sampled) == list(range(1, 41))
    for batch in told.batches:
        assert batch.moments is not None
        assert all(sampled.arrived is not None and sampled.arrived <= batch.taken for sampled in batch.sampled)
        times = [batch.taken, *chain(*batch.moments)]
        assert all(later >= earlier for earlier, later in pairwise(times))
        assert batch.ended == times[-1]
        assert batch.requests == len(batch.sampled)


def test_only_batches_with_sampled_requests_are_told_of(core: Core, device: QueuedDevice) -> None:
    told = Told()
    batcher = core.serve(FakeCompiled(device=device), tracer=told)
    assert submit(batcher, 1).outcome()
    assert submit(batcher, 12, span_id=5).outcome()  # in two batches: the largest has 8 rows
    wait_for(lambda: len(told.batches) == 2)
    assert [[s.arrived is None for s in batch.sampled] for batch in told.batches] == [[False], [True]]
    assert sum(batch.rows for batch in told.batches) == 12
