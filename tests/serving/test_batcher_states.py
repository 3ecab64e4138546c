"""Any order of submit, cancel, take, answer, fail and close: nothing is lost, answered twice or run too late."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from opara_server.serving.batcher import Batch, Ticket
from opara_server.serving.errors import Cancelled, InternalError, ServingError
from opara_server.serving.rows import Rows
from tests.serving.fakes import Answer, rows_of
from tests.serving.queues import Queue

BUCKETS = (1, 4, 8)
MAX_ROWS, MAX_QUEUE_ROWS = 20, 40


@dataclass
class Sent:
    rows: Rows
    answer: Answer
    ticket: Ticket
    number: int
    deadline: float
    start_by: float
    level: int
    taken: int = 0

    @property
    def waits(self) -> int:
        return 0 if self.answer.there else self.rows.count - self.taken


class Batching(RuleBasedStateMachine):
    requests: Bundle[Sent] = Bundle("requests")

    @initialize(
        level_rows=st.sampled_from([(), (40, 20), (25, 40, 30)]),
        delay_s=st.sampled_from([0.0, 1.0]),
        preferred_sizes=st.sampled_from([(), (3,), (4, 6)]),
        queue_timeout_s=st.sampled_from([inf, 3.0]),
        seconds=st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3) | st.none(),
    )
    def start(
        self,
        level_rows: tuple[int, ...],
        delay_s: float,
        preferred_sizes: tuple[int, ...],
        queue_timeout_s: float,
        seconds: list[float] | None,
    ) -> None:
        self.level_rows, self.queue_timeout_s = level_rows or (MAX_QUEUE_ROWS,), queue_timeout_s
        self.queue = Queue(
            MAX_ROWS,
            MAX_QUEUE_ROWS,
            delay_s,
            buckets=BUCKETS,
            preferred_sizes=preferred_sizes,
            level_rows=level_rows,
            default_level=len(self.level_rows),
            queue_timeout_s=queue_timeout_s,
        )
        for bucket, taken in zip(BUCKETS, seconds or (), strict=False):
            self.queue.batcher.ran(bucket, taken)
        self.sent: list[Sent] = []
        self.in_flight: list[Batch] = []
        self.closed = False

    @rule(
        target=requests,
        rows=st.integers(0, MAX_ROWS + 1) | st.integers(1, 3),
        within_s=st.none() | st.floats(-0.5, 6.0),
        priority=st.integers(-1, 4),
        timeout_us=st.sampled_from([0, 0, 500_000, 5_000_000]),
    )
    def submit(self, rows: int, within_s: float | None, priority: int, timeout_us: int) -> Sent:
        queue, answer, sent = self.queue, Answer(), rows_of(rows)
        deadline = None if within_s is None else queue.now + within_s
        woken, before = queue.woken, queue.batcher.ready(queue.now)
        ticket = queue.batcher.submit(sent, deadline, answer, priority=priority, timeout_us=timeout_us)
        after = queue.batcher.ready(queue.now)
        sooner = after is not None and (before is None or after < before)
        assert queue.woken > woken or not sooner, "nobody told the executor"
        assert queue.woken == woken or not answer.there
        limit_s = min(timeout_us / 1e6 or inf, self.queue_timeout_s)
        level = priority if 1 <= priority <= len(self.level_rows) else len(self.level_rows)
        number = len(self.sent)
        made = Sent(sent, answer, ticket, number, deadline or inf, queue.now + limit_s, level)
        self.sent.append(made)
        return made

    @rule(request=requests)
    def cancel(self, request: Sent) -> None:
        answered = request.answer.there
        request.ticket.cancel()
        assert answered or isinstance(request.answer.error(), Cancelled)

    @rule(seconds=st.floats(0.0, 2.0))
    def wait(self, seconds: float) -> None:
        self.queue.now += seconds

    @precondition(lambda self: len(self.in_flight) < 3)
    @rule()
    def take(self) -> None:
        batch = self.queue.batcher.take()
        if batch is None:
            assert not any(request.waits for request in self.sent)
            return
        self.in_flight.append(batch)
        assert sum(piece.count for piece in batch.pieces) == batch.rows
        assert batch.bucket == next(bucket for bucket in BUCKETS if bucket >= batch.rows)
        by_ticket = {id(request.ticket): request for request in self.sent}
        for piece in batch.pieces:
            request = by_ticket[id(piece.ticket)]
            assert not request.answer.there
            assert piece.count > 0
            assert piece.start == request.taken
            assert self.queue.now <= request.deadline
            assert request.taken or self.queue.now <= request.start_by
            before = [r for r in self.sent[: request.number] if r.level == request.level]
            assert not any(r.waits for r in before), "overtaken within its level"
            request.taken += piece.count

    @precondition(lambda self: self.in_flight)
    @rule()
    def answer(self) -> None:
        self.queue.answer(self.in_flight.pop(0))

    @precondition(lambda self: self.in_flight)
    @rule()
    def fail(self) -> None:
        batch = self.in_flight.pop(0)
        self.queue.batcher.fail(batch, InternalError())
        tickets = {id(piece.ticket) for piece in batch.pieces}
        assert all(request.answer.there for request in self.sent if id(request.ticket) in tickets)

    @precondition(lambda self: len(self.sent) > 10)
    @rule(drop_queued=st.booleans())
    def close(self, drop_queued: bool) -> None:
        self.queue.batcher.close(drop_queued=drop_queued)
        self.closed = True
        assert not drop_queued or not any(request.waits for request in self.sent)

    @invariant()
    def everything_is_accounted_for(self) -> None:
        if not hasattr(self, "queue"):
            return
        counts = self.queue.batcher.counts
        outcomes = [request.answer.outcomes for request in self.sent]
        assert max(map(len, outcomes), default=0) <= 1
        errors = [o[0] for o in outcomes if o and isinstance(o[0], ServingError)]
        failed, cancelled = (sum(isinstance(e, kind) for e in errors) for kind in (InternalError, Cancelled))
        assert counts.received == len(self.sent)
        assert counts.answered == sum(bool(o) for o in outcomes) - len(errors)
        assert (counts.failed, counts.cancelled) == (failed, cancelled)
        assert counts.refused == len(errors) - failed - cancelled
        assert counts.pending == sum(not o for o in outcomes)

    @invariant()
    def the_queue_knows_what_waits(self) -> None:
        if not hasattr(self, "queue"):
            return
        waiting = sum(request.waits for request in self.sent)
        assert self.queue.depth() == waiting <= MAX_QUEUE_ROWS
        for level, limit in enumerate(self.level_rows, start=1):
            assert sum(request.waits for request in self.sent if request.level == level) <= limit
        ready = self.queue.batcher.ready(self.queue.now)
        assert (ready is None) == (waiting == 0)
        if self.closed or waiting >= BUCKETS[-1]:
            assert ready is None or ready <= self.queue.now

    def teardown(self) -> None:
        if not hasattr(self, "queue"):
            return
        self.queue.batcher.close(drop_queued=False)
        while self.in_flight or any(request.waits for request in self.sent):
            self.take()
            while self.in_flight:
                self.answer()
        for request in self.sent:
            outcome = request.answer.outcome()
            assert isinstance(outcome, ServingError) or outcome == request.rows


Batching.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestBatching = Batching.TestCase
