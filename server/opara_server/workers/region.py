"""Memory that a worker and the engine share: what the worker counts, then places for tensors.

It has no name: who holds its descriptor has it, and with the last of them it is gone.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

COUNTS_BYTES = 1 << 20
_KEPT_BYTES = 1 << 26  # pages of a larger place are given back with it
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
    if nbytes > _KEPT_BYTES:
        mapping, begin = places.obj, COUNTS_BYTES + place
        assert isinstance(mapping, mmap.mmap)
        mapping.madvise(mmap.MADV_REMOVE, begin, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE)
