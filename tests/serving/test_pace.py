"""What is known of how fast buckets run, and what follows for how many rows to run at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opara_server.serving.pace import Pace

TIMES = st.floats(1e-4, 1.0)


def pace(**seconds: float) -> Pace:
    """``b8=0.5``: bucket 8 takes half a second."""
    sizes = {int(name[1:]): taken for name, taken in seconds.items()}
    made = Pace(sorted(sizes))
    for bucket, taken in sizes.items():
        made.ran(bucket, taken)
    return made


@pytest.mark.parametrize(
    ("rows", "first"),
    [(1, 1), (2, 2), (7, 7), (8, 8), (9, 8), (16, 8), (17, 17), (24, 24), (32, 32)],
)
def test_rows_are_split_where_that_measured_faster_than_padding(rows: int, first: int) -> None:
    # 9 as 8 + 1 take 1.8 instead of 3, 16 as 8 + 8 take 2; 17 as 8 + 8 + 1 would take 2.8, which saves too little
    assert pace(b1=0.8, b8=1.0, b32=3.0).first(rows) == first


def test_a_split_must_save_a_tenth() -> None:
    assert pace(b8=1.0, b32=2.3).first(16) == 8
    assert pace(b8=1.0, b32=2.2).first(16) == 16


def test_of_equals_the_larger_bucket_comes_first() -> None:
    assert pace(b1=0.125, b8=1.0, b32=4.0).first(9) == 8


def test_what_has_not_run_might_take_no_time() -> None:
    unknown = Pace((1, 8, 32))
    unknown.ran(1, 0.1)
    unknown.ran(8, 0.1)
    assert (unknown.first(9), unknown.shortest(9), unknown.busy(9), unknown.shortest(100)) == (9, 0.0, 0.0, 0.0)


def test_the_fastest_run_counts() -> None:
    seen = pace(b1=1.0)
    for seconds in (0.5, 2.0):
        seen.ran(1, seconds, 0.8 * seconds)
    assert (seen.shortest(1), seen.busy(1), seen.replay(1)) == (0.5, 0.4, 0.4)


def test_a_faster_run_changes_what_was_said_before() -> None:
    seen = pace(b1=0.8, b8=1.0, b32=3.0)
    assert (seen.first(9), seen.shortest(4)) == (8, 1.0)
    seen.ran(32, 0.5)
    assert (seen.first(9), seen.shortest(4)) == (9, 0.5)


@st.composite
def paces(draw: st.DrawFn) -> tuple[Pace, dict[int, tuple[float, float]]]:
    sizes = draw(st.lists(st.integers(1, 64), min_size=1, max_size=5, unique=True))
    times = {
        size: (seconds, seconds * draw(st.floats(0.1, 1.0))) for size in sorted(sizes) for seconds in [draw(TIMES)]
    }
    made = Pace(tuple(times))
    for size, (seconds, replay) in times.items():
        made.ran(size, seconds, replay)
    return made, times


@given(paces(), st.data())
def test_taking_the_first_again_and_again_is_never_slower_than_padding(
    made: tuple[Pace, dict[int, tuple[float, float]]], data: st.DataObject
) -> None:
    pace, times = made
    rows = left = data.draw(st.integers(1, max(times)))
    total = 0.0
    while left:
        taken = pace.first(left)
        assert 1 <= taken <= left
        assert taken == left or taken in times
        total += pace.together(taken)
        left -= taken
    assert total <= pace.together(rows) * (1 + 1e-9)


@given(paces(), st.lists(st.integers(1, 64), min_size=1, max_size=20))
def test_no_batches_keep_the_device_shorter_than_the_bound(
    made: tuple[Pace, dict[int, tuple[float, float]]], sizes: list[int]
) -> None:
    """However rows are put into batches, with whatever padding."""
    pace, times = made
    batches = [min(size, max(times)) for size in sizes]
    taken = sum(times[min(b for b in times if b >= rows)][1] for rows in batches)
    assert pace.busy(sum(batches)) <= taken * (1 + 1e-9)
