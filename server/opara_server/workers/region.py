"""Memory that a worker and the engine share: what the worker counts, then places for tensors.

It has no name: who holds its descriptor has it, and with the last of them it is gone.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

COUNTS_BYTES = 1 << 22
_KEPT_BYTES = 1 << 26  # pages of a larger place are given back with it
PINNED_BYTES = 1 << 28  # of the places, from the first on: the engine may pin them, so their pages are never given back
PLACES_BYTES = 1 << 32  # so that what gRPC can carry, 2 GiB, has a place; only pages that were written take memory


class Region(NamedTuple):
    """Views of one mapping, which goes with the last of them."""

    counts: memoryview
    places: memoryview


def create() -> int:
    """A new one's descriptor, the caller's to close; all bytes are 0."""
    fd = os.memfd_create("opara-worker", os.MFD_CLOEXEC)
    os.ftruncate(fd, COUNTS_BYTES + PLACES_BYTES)
    return fd


def attach(fd: int) -> Region:
    """``fd`` may be closed afterwards."""
    view = memoryview(mmap.mmap(fd, COUNTS_BYTES + PLACES_BYTES))
    return Region(view[:COUNTS_BYTES], view[COUNTS_BYTES:])


def give_pages_back(places: memoryview, place: int, nbytes: int) -> None:
    """A place of so many bytes is used no more: what is rare and large shall not stay in memory for good."""
    begin = max(place, PINNED_BYTES)
    left = place + nbytes - begin
    if nbytes > _KEPT_BYTES and left > 0:
        mapping = places.obj
        assert isinstance(mapping, mmap.mmap)
        mapping.madvise(mmap.MADV_REMOVE, COUNTS_BYTES + begin, -(-left // mmap.PAGESIZE) * mmap.PAGESIZE)
