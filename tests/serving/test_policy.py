"""Who is served first, who is refused, and how many rows go together."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from opara_server.serving.errors import DeadlineExceeded, InvalidInput, Overloaded
from opara_server.serving.rows import Rows
from opara_server.serving.ticket import Ticket
from opara_server.serving.turns import InFlight
from opara_server.serving.waiting import PATIENCE
from tests.serving.fakes import Answer, rows_of
from tests.serving.queues import Queue, shape

LEVELS = (100, 100, 100)


def served(queue: Queue) -> list[int]:
    """The levels of the next batch's pieces, from 1."""
    batch = queue.take()
    queue.answer(batch)
    return [piece.ticket.level + 1 for piece in batch.pieces]


def test_higher_priorities_go_first_and_0_is_the_default() -> None:
    queue = Queue(level_rows=LEVELS, default_level=2)
    for priority in (3, 0, 1, 2, 1, 17):
        queue.submit(2, priority=priority)
    assert [served(queue) for _ in range(2)] == [[1, 1, 2, 2], [2, 3]]


def test_without_levels_every_priority_is_the_same() -> None:
    queue = Queue()
    answers = [queue.submit(4, priority=priority) for priority in (9, 0, 1)]
    queue.answer(queue.take())
    assert [answer.there for answer in answers] == [True, True, False]


def test_an_urgent_request_goes_between_the_pieces_of_a_split_one() -> None:
    queue = Queue(level_rows=(100, 100), default_level=2)
    queue.submit(20)
    assert served(queue) == [2]
    queue.submit(8, priority=1)
    assert [served(queue) for _ in range(3)] == [[1], [2], [2]]


def test_a_low_priority_is_served_once_in_so_many_batches_and_costs_the_others_no_more() -> None:
    queue = Queue(level_rows=(100, 100), default_level=2)
    low = [queue.submit(1) for _ in range(3)]
    batches = []
    for _ in range(3 * (PATIENCE + 1)):
        for _ in range(8):
            queue.submit(1, priority=1)
        batches.append(served(queue))
        while queue.batcher.counts.pending > 16:
            batches[-1] += served(queue)
    assert [answer.there for answer in low] == [True] * 3
    assert [2 in levels for levels in batches] == ([False] * PATIENCE + [True]) * 3
    assert sum(levels.count(2) for levels in batches) == 3


def submit_to(queue: Queue, level: int) -> Ticket:
    return queue.batcher.submit(rows_of(1), None, Answer(), priority=level)


def pass_over(queue: Queue, batches: int = PATIENCE) -> None:
    for _ in range(batches):
        queue.submit(8, priority=1)
        assert served(queue) == [1]


def test_a_level_whose_requests_gave_up_when_their_turn_had_come_holds_up_nobody() -> None:
    queue = Queue(level_rows=(100, 100), default_level=2)
    low = submit_to(queue, 2)
    pass_over(queue)
    low.cancel()
    queue.submit(8, priority=1)
    assert served(queue) == [1]


def test_who_comes_to_an_empty_level_has_not_been_passed_over() -> None:
    queue = Queue(level_rows=(100, 100), default_level=2)
    low = submit_to(queue, 2)
    pass_over(queue)
    low.cancel()
    submit_to(queue, 2)
    pass_over(queue)
    queue.submit(8, priority=1)
    assert served(queue) == [2]


def test_the_turn_of_a_level_is_not_spent_on_those_who_gave_up() -> None:
    queue = Queue(level_rows=(100, 100), default_level=2)
    low = [submit_to(queue, 2) for _ in range(6)]
    pass_over(queue)
    for ticket in low[:3]:
        ticket.cancel()
    queue.submit(8, priority=1)
    assert served(queue) == [2]


@pytest.mark.parametrize("levels", [2, 3, 40])
def test_every_level_is_served_however_many_others_are_urgent(levels: int) -> None:
    queue = Queue(level_rows=(80,) * levels, default_level=levels, max_queue_rows=10_000)
    since = dict.fromkeys(range(1, levels + 1), 0)
    for _ in range(300):
        for priority in since:
            queue.submit(8, priority=priority)
        seen = served(queue)
        for priority in since:
            since[priority] = 0 if priority in seen else since[priority] + 1
            assert since[priority] <= PATIENCE + levels


def test_no_lower_level_goes_into_a_batch_while_a_higher_request_waits() -> None:
    queue = Queue(level_rows=LEVELS)
    for rows, priority in ((5, 1), (4, 1), (4, 2), (2, 3)):
        queue.submit(rows, priority=priority)
    assert [shape(queue.take()) for _ in range(3)] == [([5], 8), ([4, 4], 8), ([2], 4)]


def test_a_request_larger_than_the_room_that_was_planned_takes_its_own() -> None:
    queue = Queue(level_rows=(100, 100))
    for bucket, seconds in ((1, 2.0), (4, 0.25), (8, 2.0)):
        queue.batcher.ran(bucket, seconds)  # full batches of 4 are best, but 5 rows alone are not run as 4 and 1
    queue.submit(9, priority=2)
    queue.submit(5, priority=1)
    assert shape(queue.take()) == ([5, 3], 8)


def test_each_level_has_its_own_limit_within_that_of_all() -> None:
    queue = Queue(max_queue_rows=20, level_rows=(16, 8), default_level=2)
    queue.submit(8)
    assert str(queue.submit(1).error()) == "the queue of priority 2 is full: 8 of 8 rows wait"
    assert not queue.submit(12, priority=1).there
    error = queue.submit(1, priority=1).error()
    assert isinstance(error, Overloaded)
    assert str(error) == "the queue is full: 20 of 20 rows wait"


@pytest.mark.parametrize(
    ("model_s", "override", "asked_us", "refused_after_s"),
    [
        (inf, True, 0, inf),
        (inf, True, 500_000, 0.5),
        (inf, False, 500_000, inf),
        (1.0, True, 0, 1.0),
        (1.0, True, 500_000, 0.5),
        (1.0, True, 2_000_000, 1.0),  # a request cannot extend it
        (1.0, False, 500_000, 1.0),
    ],
)
def test_time_in_the_queue(model_s: float, override: bool, asked_us: int, refused_after_s: float) -> None:
    for waited_s in (0.4, 0.6, 0.9, 1.1, 5.0):
        queue = Queue(queue_timeout_s=model_s, timeout_override=override)
        answer = queue.submit(1, timeout_us=asked_us)
        queue.now += waited_s
        taken = queue.batcher.take()
        assert (taken is None) == answer.there == (waited_s > refused_after_s)
        if answer.there:
            assert isinstance(answer.error(), DeadlineExceeded)


def test_a_request_that_has_begun_has_left_the_queue() -> None:
    queue = Queue()
    answer = queue.submit(12, timeout_us=1)
    queue.answer(queue.take())
    queue.now += 1
    queue.answer(queue.take())
    assert isinstance(answer.outcome(), Rows)


def test_who_waited_too_long_hears_of_it_though_the_batch_has_no_room_for_its_level() -> None:
    queue = Queue(level_rows=(100, 100), default_level=2)
    late = queue.submit(1, timeout_us=10)
    queue.submit(8, priority=1)
    queue.now += 1
    assert served(queue) == [1]
    assert isinstance(late.error(), DeadlineExceeded)


@pytest.mark.parametrize("wrong", [{"priority": -1}, {"timeout_us": -1}])
def test_negative_parameters_are_refused(wrong: dict[str, int]) -> None:
    assert isinstance(Queue().submit(1, **wrong).error(), InvalidInput)


class TestPreferredSizes:
    def test_reaching_one_ends_the_delay_and_takes_no_more_than_the_largest_reached(self) -> None:
        queue = Queue(delay_s=2.0, buckets=(1, 8, 32), preferred_sizes=(4, 8))
        queue.submit(3)
        assert queue.batcher.ready(queue.now) == queue.now + 2
        queue.submit(3)
        woken = queue.woken
        assert queue.batcher.ready(queue.now) == queue.now
        queue.submit(2)
        queue.submit(2)
        assert shape(queue.take()) == ([3, 3, 2], 8)
        assert queue.batcher.ready(queue.now) == queue.now + 2
        assert woken == 2

    def test_what_would_be_padding_is_filled(self) -> None:
        queue = Queue(delay_s=2.0, buckets=(1, 8, 32), preferred_sizes=(3,))
        for _ in range(10):
            queue.submit(1)
        assert shape(queue.take()) == ([1] * 8, 8)

    def test_after_the_delay_all_go(self) -> None:
        queue = Queue(delay_s=2.0, buckets=(1, 8, 32), preferred_sizes=(8,))
        for _ in range(7):
            queue.submit(1)
        queue.now += 2
        assert queue.batcher.ready(queue.now) == queue.now
        for _ in range(2):
            queue.submit(1)
        assert shape(queue.take()) == ([1] * 9, 32)

    def test_more_than_was_preferred_is_no_reason_for_a_larger_bucket(self) -> None:
        queue = Queue(delay_s=2.0, buckets=(1, 8, 32), preferred_sizes=(3,))
        for bucket, seconds in ((1, 0.8), (8, 1.0), (32, 1.1)):
            queue.batcher.ran(bucket, seconds)
        for rows in (2, 2, 2, 3):
            queue.submit(rows)
        assert shape(queue.take()) == ([2, 2, 2], 8)

    @pytest.mark.parametrize(
        ("b32", "requests", "batches"),
        [
            (1.2, [1] * 9, [([1] * 9, 32)]),
            (3.0, [1] * 9, [([1] * 8, 8), ([1], 1)]),
            (3.0, [9], [([8], 8), ([1], 1)]),
            (3.0, [5, 4], [([5], 8), ([4], 8)]),
            (2.0, [5, 4], [([5, 4], 32)]),  # they cannot run as 8 and 1, and as 5 and 4 take as long
            (3.0, [4, 4, 8, 1], [([4, 4, 8, 1], 32)]),  # 2.8 in three batches would save too little
            (4.0, [7, 9, 1], [([7], 8), ([8], 8), ([1, 1], 8)]),
        ],
    )
    def test_padding_is_avoided_where_measured_times_say_so(
        self, b32: float, requests: list[int], batches: list[tuple[list[int], int]]
    ) -> None:
        queue = Queue(buckets=(1, 8, 32))
        for bucket, seconds in ((1, 0.8), (8, 1.0), (32, b32)):
            queue.batcher.ran(bucket, seconds)
        answers = [queue.submit(rows) for rows in requests]
        for expected in batches:
            batch = queue.take()
            assert shape(batch) == expected
            queue.answer(batch)
        assert all(isinstance(answer.outcome(), Rows) for answer in answers)


class TestHopelessDeadlines:
    def queue(self, in_flight: InFlight | None = None, **options: object) -> Queue:
        queue = Queue(max_queue_rows=1000, in_flight=in_flight, **options)  # type: ignore[arg-type]
        for bucket, seconds in ((1, 0.5), (4, 0.8), (8, 1.0)):
            queue.batcher.ran(bucket, seconds)
        return queue

    def refused(self, queue: Queue, rows: int, within_s: float, priority: int = 0) -> bool:
        return queue.submit(rows, queue.now + within_s, priority=priority).there

    def test_its_own_run(self) -> None:
        assert self.refused(self.queue(), 1, 0.49)
        assert not self.refused(self.queue(), 1, 0.51)

    def test_the_queue_ahead(self) -> None:
        queue = self.queue()
        queue.submit(32)
        assert self.refused(queue, 8, 4.9)
        assert not self.refused(queue, 8, 5.1)

    def test_what_any_model_has_in_flight(self) -> None:
        device = InFlight()
        other, queue = self.queue(device), self.queue(device)
        other.submit(8)
        other.take()
        assert self.refused(queue, 8, 1.9)
        assert not self.refused(queue, 8, 2.1)
        queue.now += 0.5  # half of it is over
        assert not self.refused(self.queue(device), 8, 2.1)

    def test_only_what_goes_before_it_counts(self) -> None:
        queue = self.queue(level_rows=(500, 500), default_level=2)
        queue.submit(80)
        assert not self.refused(queue, 8, 1.1, priority=1)

    def test_of_higher_levels_only_what_runs_before_its_turn_comes_anyway(self) -> None:
        queue = self.queue(level_rows=(500, 500), default_level=2)
        queue.submit(64, priority=1)
        queue.submit(64, priority=1)
        sure_s = PATIENCE * 0.5  # so many batches, the shortest there are
        assert self.refused(queue, 8, sure_s + 0.9)
        assert not self.refused(queue, 8, sure_s + 1.1)


@given(
    st.lists(
        st.tuples(st.floats(0.0, 1.0), st.integers(1, 8) | st.integers(9, 20), st.integers(1, 3)),
        min_size=1,
        max_size=40,
    ),
    st.lists(st.floats(0.1, 3.0), min_size=3, max_size=3),
    st.integers(0, 39),
    st.floats(0.05, 30.0),
)
@example([(0.0, 8, 1), *[(0.0, 5, 1)] * 4, (0.0, 1, 3)], [1.0] * 3, 5, 3.0)  # room beside others is none of its
def test_none_is_refused_at_submit_that_a_device_at_its_fastest_would_have_answered_in_time(
    arrivals: list[tuple[float, int, int]], seconds: list[float], index: int, within_s: float
) -> None:
    """Behind others that all run: what it takes with no deadline is what it would have taken."""
    index %= len(arrivals)
    took_s = simulate(arrivals, seconds, index, None)
    assert took_s is not None
    if simulate(arrivals, seconds, index, within_s) is None:
        assert took_s > within_s - 1e-6


def simulate(
    arrivals: list[tuple[float, int, int]], seconds: list[float], index: int, within_s: float | None
) -> float | None:
    """Requests come, each so long after the last, of so many rows and of that priority, to a device on which every
    batch takes its bucket's time. How long the one at ``index`` took; None if it was refused at submit."""
    queue = Queue(max_queue_rows=1000, level_rows=(1000,) * 3)
    times = dict(zip((1, 4, 8), seconds, strict=True))
    for bucket, taken in times.items():
        queue.batcher.ran(bucket, taken)
    end, running = inf, None

    def run_until(moment: float) -> None:
        nonlocal end, running
        while end <= moment:
            queue.now = end
            assert running is not None
            queue.answer(running)
            begin()
        queue.now = moment

    def begin() -> None:
        nonlocal end, running
        running = queue.batcher.take()
        end = inf if running is None else queue.now + times[running.bucket]

    for position, (pause, rows, priority) in enumerate(arrivals):
        run_until(queue.now + pause)
        probed = position == index
        deadline = queue.now + within_s if probed and within_s is not None else None
        answer = queue.submit(rows, deadline, priority=priority)
        if probed:
            watched, arrived = answer, queue.now
            if answer.there:
                return None
        if running is None:
            begin()
    while not watched.there:
        run_until(end)
    return queue.now - arrived
