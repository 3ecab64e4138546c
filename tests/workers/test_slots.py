"""Blocks of shared memory: whoever has one has it alone, and what is given back can be had again, in any size."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from opara_server.workers.slots import Slots

SIZE, NEAR = 1 << 16, 1 << 14
steps = st.lists(st.tuples(st.booleans(), st.integers(0, SIZE), st.integers(0, 1000)), max_size=60)


def check_disjoint(taken: dict[int, int]) -> None:
    end = 0
    for offset, nbytes in sorted(taken.items()):
        assert offset >= end
        end = offset + nbytes
    assert end <= SIZE


@given(steps)
@settings(max_examples=200, deadline=None)
def test_blocks_are_apart_and_all_of_them_come_back(steps: list[tuple[bool, int, int]]) -> None:
    slots, taken = Slots(SIZE, near=NEAR), dict[int, int]()
    for give, nbytes, chosen in steps:
        if give and taken:
            offset = sorted(taken)[chosen % len(taken)]
            del taken[offset]
            slots.give(offset)
        elif (place := slots.take(nbytes)) is not None:
            assert slots.nbytes(place) >= nbytes
            taken[place] = slots.nbytes(place)
        check_disjoint(taken)
        assert slots.taken == len(taken)
    for offset in taken:
        slots.give(offset)
    assert slots.take(SIZE) == 0


def test_what_was_used_is_used_again_first() -> None:
    slots = Slots(SIZE, near=NEAR)
    first = slots.take(3000)
    assert first is not None
    slots.take(100)
    slots.give(first)
    assert slots.take(2100) == first


def test_where_there_is_no_room_there_is_none() -> None:
    slots = Slots(SIZE, near=NEAR)
    assert slots.take(SIZE + 1) is None
    halves = [slots.take(SIZE // 2), slots.take(SIZE // 2)]
    assert sorted(h for h in halves if h is not None) == [0, SIZE // 2]
    assert slots.take(1) is None


def test_there_is_no_block_beyond_while_one_is_near() -> None:
    slots = Slots(SIZE, near=NEAR)
    taken = [place for _ in range(SIZE // 2048) if (place := slots.take(2048)) is not None]
    assert len(taken) == SIZE // 2048
    for place in (NEAR + 2048, NEAR - 2048, NEAR + 4096):  # whatever came back last
        slots.give(place)
    assert slots.take(2048) == NEAR - 2048
    assert slots.take(2048) == NEAR + 2048


def test_what_is_near_is_halved_before_something_beyond_is_taken() -> None:
    slots = Slots(SIZE, near=NEAR)
    near, beyond = slots.take(NEAR), slots.take(2048)
    assert (near, beyond) == (0, NEAR)
    for place in (NEAR, 0):
        slots.give(place)
    assert slots.take(2048) == 0


def test_after_many_small_blocks_large_ones_are_near_again() -> None:
    slots = Slots(SIZE, near=NEAR)
    small = [slots.take(2048) for _ in range(NEAR // 2048)]
    assert max(place for place in small if place is not None) < NEAR
    for place in small:
        assert place is not None
        slots.give(place)
    places = []
    for _ in range(2 * SIZE // 2048):
        place = slots.take(NEAR)
        assert place is not None
        places.append(place)
        slots.give(place)
    assert places[-1] == 0
