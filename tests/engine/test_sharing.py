"""Two resources shared by hand-computed examples, and what fairness means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opara_server.engine.sharing import NEVER, Sharing, fair_part


def ends(*operators: tuple[float, float, float]) -> list[float]:
    """When each of those that start at 0 is done, given as (work, room, bandwidth)."""
    sharing = Sharing()
    for operator, (work, room, bandwidth) in enumerate(operators):
        sharing.join(0.0, operator, work, room, bandwidth)
    found = {}
    while sharing.first >= 0:
        operator, now = sharing.first, sharing.first_end
        sharing.leave(now, operator)
        found[operator] = now
    assert sharing.first_end == NEVER
    return [found[operator] for operator in range(len(operators))]


def test_those_that_fit_side_by_side_do_not_slow_each_other() -> None:
    assert ends((10, 0.5, 0.5), (4, 0.5, 0.5)) == [10, 4]


def test_those_that_fill_the_device_share_it() -> None:
    # Half speed each until the short one has done its 4 µs at 8; the other has 6 left at full speed.
    assert ends((10, 1, 0), (4, 1, 0)) == [14, 8]


def test_who_needs_an_equal_part_or_more_gets_an_equal_part() -> None:
    # Half of the device each: two thirds of what they need.
    assert ends((10, 0.75, 0), (10, 0.75, 0)) == pytest.approx([15, 15])


def test_who_needs_less_than_an_equal_part_is_not_slowed() -> None:
    # 0.8 of the device is left to the other for 4 µs, and all of it for the 6.8 µs of work that remain.
    assert ends((10, 1, 0), (4, 0.2, 0)) == pytest.approx([10.8, 4])


def test_those_that_need_all_the_bandwidth_share_it_even_where_there_is_room() -> None:
    assert ends((10, 0.1, 1), (10, 0.1, 1)) == pytest.approx([20, 20])


def test_who_needs_little_bandwidth_is_not_slowed_by_those_who_need_much() -> None:
    # 0.2 is less than a fair part; the other two get 0.4 each of the 1.0 that they want.
    assert ends((5, 0.1, 0.2), (10, 0.1, 1), (10, 0.1, 1))[0] == pytest.approx(5)


def test_a_compute_bound_and_a_memory_bound_one_overlap() -> None:
    assert ends((10, 0.9, 0.1), (10, 0.1, 0.9)) == pytest.approx([10, 10])


def test_the_scarcer_resource_sets_the_speed() -> None:
    assert ends((10, 1, 0.8), (10, 1, 0.8)) == pytest.approx([20, 20])
    assert ends((10, 0.8, 1), (10, 0.8, 1)) == pytest.approx([20, 20])


def test_one_that_comes_later_slows_the_rest_of_the_work() -> None:
    sharing = Sharing()
    sharing.join(0.0, 0, 10.0, 1.0, 0.0)
    sharing.join(6.0, 1, 1.0, 1.0, 0.0)
    assert (sharing.first, sharing.first_end) == (1, 8.0)
    sharing.leave(8.0, 1)
    assert (sharing.first, sharing.first_end) == (0, 11.0)


def test_company_slows_all_down_until_one_is_alone() -> None:
    sharing = Sharing(company=0.25)
    sharing.join(0.0, 0, 10.0, 0.1, 0.1)
    assert sharing.first_end == 10.0
    sharing.join(6.0, 1, 2.0, 0.1, 0.1)
    assert (sharing.first, sharing.first_end) == (1, 8.5)
    sharing.leave(8.5, 1)
    assert (sharing.first, sharing.first_end) == (0, 10.5)


@given(st.lists(st.floats(0.0, 1.0), max_size=12))
def test_a_fair_part_uses_up_a_resource_that_is_scarce_and_no_more(needs: list[float]) -> None:
    part = fair_part(needs)
    assert 0 < part <= 1
    assert sum(min(part, need) for need in needs) == pytest.approx(min(1.0, sum(needs)))
