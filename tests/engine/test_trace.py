"""How busy streams were, from intervals by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opara_server.engine.trace import Interval, Trace, occupancy


def test_two_streams_overlap_for_a_while() -> None:
    replay = (Interval(0, 0.0, 6.0), Interval(1, 4.0, 10.0), Interval(0, 8.0, 10.0), Interval(0, 16.0, 20.0))
    seen = occupancy(Trace((replay,)))
    assert (seen.span_us, seen.streams) == (20.0, 2)
    assert seen.stream_busy == {0: 12 / 20, 1: 6 / 20}
    assert seen.busy_us == {0: 6.0, 1: 10.0, 2: 4.0}
    assert seen.concurrency == (10 * 1 + 4 * 2) / 14


def test_means_over_replays_that_do_not_start_at_zero() -> None:
    first = (Interval(0, 100.0, 104.0),)
    second = (Interval(0, 0.0, 2.0), Interval(2, 0.0, 2.0))
    seen = occupancy(Trace((first, second)))
    assert seen.span_us == 3.0
    assert seen.stream_busy == {0: 1.0, 2: 2 / 6}
    assert seen.busy_us == {0: 0.0, 1: 2.0, 2: 1.0}
    assert seen.concurrency == 8 / 6


def test_overlapping_intervals_of_one_stream_count_once() -> None:
    seen = occupancy(Trace(((Interval(3, 0.0, 5.0), Interval(3, 4.0, 8.0), Interval(3, 4.5, 6.0)),)))
    assert seen.stream_busy == {3: 1.0}
    assert seen.busy_us == {0: 0.0, 1: 8.0}


@pytest.mark.parametrize("replays", [(), ((),), ((), ())])
def test_nothing_traced_is_an_error(replays: tuple[tuple[Interval, ...], ...]) -> None:
    with pytest.raises(ValueError, match="no kernel was traced"):
        occupancy(Trace(replays))


def test_an_empty_replay_beside_others_is_left_out() -> None:
    assert occupancy(Trace(((), (Interval(0, 0.0, 4.0),)))).span_us == 4.0


def test_kernels_of_no_duration() -> None:
    seen = occupancy(Trace(((Interval(0, 1.0, 1.0),),)))
    assert (seen.span_us, seen.stream_busy, seen.concurrency) == (0.0, {0: 0.0}, 0.0)


TIMES = st.integers(0, 50)


@given(
    st.lists(
        st.builds(lambda s, a, d: Interval(s, float(a), float(a + d)), st.integers(0, 4), TIMES, TIMES), min_size=1
    )
)
def test_the_shares_add_up(intervals: list[Interval]) -> None:
    seen = occupancy(Trace((tuple(intervals),)))
    assert sum(seen.busy_us.values()) == pytest.approx(seen.span_us)
    busy_time = sum(share * seen.span_us for share in seen.stream_busy.values())
    assert busy_time == pytest.approx(sum(count * time for count, time in seen.busy_us.items()))
    for tick in range(100):  # by brute force, at the middle of each unit of time
        at = tick + 0.5
        assert len({i.stream for i in intervals if i.start_us < at < i.end_us}) in seen.busy_us or not within(
            at, intervals
        )


def within(at: float, intervals: list[Interval]) -> bool:
    return min(i.start_us for i in intervals) < at < max(i.end_us for i in intervals)
