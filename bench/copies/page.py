"""What was found, and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HEAD = """\
# What is copied, and what is left behind

By `make bench-copies`: one caller, one row of {nbytes:,} bytes at a time, on the CPU device of {cpu}, Python {python},
torch {torch}.

## Copies

In how many places the tensor of a request and that of its answer lie in each process right after it, in freed memory,
too: it was copied to each of them, or computed there; the most of {looks} requests. *shared*: between a worker and the
engine, the same place seen from both; an answer is written over its request. What the kernel copies between sockets is
not seen, and two copies to one place are one: where memory is used again at once, less is seen than there was.
*gRPC alone* is the bare completion-queue echo, of a message that comes and is sent back.

| server | protocol | process | request | answer | request, shared | answer, shared |
|---|---|---|---|---|---|---|
"""
MIDDLE = """
## Left behind

By {requests:,} requests, after as many and a warm-up. Per request: blocks of Python's allocator and bytes of malloc
that the process holds more than before, and pages that the kernel had to give it. One tensor that happens to be held as
malloc is asked, or was, is {each:.0f} bytes per request. Per thousand requests: objects that only the cyclic collector
freed, and collections of its youngest generation, the count's own included.

| server | protocol | process | blocks | malloc bytes | page faults | in cycles | collections |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Left:
    """Of one process, per request, in the second half of the requests: Python's blocks and malloc's bytes that it has
    more than before, pages that the kernel had to give it; per thousand: objects that only the cyclic collector freed,
    and how often its youngest generation was collected."""

    blocks: float
    malloc_bytes: float
    page_faults: float
    in_cycles: float
    collections: float


@dataclass(frozen=True)
class Process:
    """``request``, ``answer``: in how many places they lie at most, ``shared`` between worker and engine or its own.
    Of a request no trace is left where another was written over it, so it is the most that tells."""

    role: str
    request: float
    answer: float
    shared_request: float
    shared_answer: float
    left: Left


@dataclass(frozen=True)
class Found:
    """One way to a model. ``requests``: of each of both halves, in the second of which ``left`` was counted."""

    server: str
    protocol: str
    requests: int
    processes: tuple[Process, ...]


def report(found: Sequence[Found], machine: Mapping[str, Any], nbytes: int, looks: int) -> str:
    """In Markdown. ``nbytes``: of a tensor. ``looks``: requests that were looked for."""
    rows = [(f"| {one.server} | {one.protocol} | {p.role} |", p) for one in found for p in one.processes]
    page = HEAD.format(nbytes=nbytes, looks=looks, **{name: machine[name] for name in ("cpu", "python", "torch")})
    for head, one in rows:
        places = (one.request, one.answer, one.shared_request, one.shared_answer)
        page += f"{head} {' | '.join(f'{number:.2f}' for number in places)} |\n"
    page += MIDDLE.format(requests=found[0].requests, each=nbytes / found[0].requests)
    for head, one in rows:
        left = one.left
        figures = (left.blocks, left.malloc_bytes, left.page_faults, left.in_cycles, left.collections)
        page += f"{head} {' | '.join(f'{figure:g}' for figure in figures)} |\n"
    return page
