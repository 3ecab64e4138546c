from __future__ import annotations

import os
from pathlib import Path

from opara_server.workers.region import COUNTS_BYTES, PINNED_BYTES, PLACES_BYTES, attach, create, give_pages_back

MIB = 1 << 20
LITTLE = 16 * MIB  # a few pages, though they may be huge ones


def used_bytes(descriptor: int) -> int:
    return os.stat(descriptor).st_blocks * 512


def test_what_one_writes_the_other_reads_and_only_what_was_written_takes_memory() -> None:
    descriptor = create()
    one, other = attach(descriptor), attach(descriptor)
    assert (len(one.counts), len(one.places)) == (COUNTS_BYTES, PLACES_BYTES)
    one.places[-5:] = b"hello"
    one.counts[0] = 7
    assert (bytes(other.places[-5:]), other.counts[0]) == (b"hello", 7)
    assert used_bytes(descriptor) < LITTLE
    os.close(descriptor)


def test_large_places_do_not_stay_in_memory_and_small_ones_do() -> None:
    descriptor = create()
    places = attach(descriptor).places
    places[PINNED_BYTES : PINNED_BYTES + 128 * MIB] = bytes(128 * MIB)
    give_pages_back(places, PINNED_BYTES, 1 * MIB)
    assert used_bytes(descriptor) >= 128 * MIB
    give_pages_back(places, PINNED_BYTES, 128 * MIB)
    assert used_bytes(descriptor) < LITTLE
    os.close(descriptor)


def test_what_may_be_pinned_stays_in_memory() -> None:
    """A device would go on reading the pages that it was given, whatever others come to their place."""
    descriptor = create()
    places = attach(descriptor).places
    places[PINNED_BYTES - MIB : PINNED_BYTES + MIB] = b"\1" * (2 * MIB)
    give_pages_back(places, PINNED_BYTES // 2, PINNED_BYTES // 2)
    give_pages_back(places, 0, 2 * PINNED_BYTES)
    assert bytes(places[PINNED_BYTES - MIB : PINNED_BYTES + MIB]) == b"\1" * MIB + bytes(MIB)
    os.close(descriptor)


def test_the_memory_goes_with_the_last_who_has_it() -> None:
    places = attach(descriptor := create()).places
    inode = str(os.fstat(descriptor).st_ino)  # there may be others, of other tests
    os.close(descriptor)

    def mapped() -> bool:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return any("opara-worker" in line and line.split()[4] == inode for line in lines)

    assert mapped()
    del places
    assert not mapped()
