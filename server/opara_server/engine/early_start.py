"""Kernels that start early (CUDA's programmatic dependent launch): which may, and why nothing else needs to know.

A kernel that is launched so may start while those right before it in the graph still run, as soon as each block of
theirs has ended or has said ``griddepcontrol.launch_dependents``. Its own ``griddepcontrol.wait`` lets nothing past
until they have all completed and what they wrote can be seen (PTX ISA, "Parallel Synchronization and Communication
Instructions: griddepcontrol"). What it saves is the time from the end of one kernel to the start of the next: on an
H200 0.3 µs of 1.2 where both are Triton's, next to nothing after a matrix product of cuBLAS, which says nothing of its
dependents. Capture makes such an edge of every kernel directly before, of other streams, too, and an ordinary edge of
a copy or a memset.

Schedules, arenas and releases are proven for kernels that start when everything before them has ended. The proofs hold
for a kernel that starts early if *each of its threads waits before its first access to memory*:

- its accesses come after the end of every direct predecessor: of those that it need not wait for to start by the wait,
  of those behind an ordinary edge, such as a copy's, since it has not started before;
- so it ends after they do, and by induction along the paths of the graph after the end of everything that happens
  before it, however many kernels in a row have started early. Whoever waits for its end, early or not, on whatever
  stream, therefore waits for all of that, too;
- so no block of the arena is touched at another time than it was proven for, be it read or written.

A kernel's own ``launch_dependents`` may be anywhere: what starts at it waits for the kernel's end all the same. But
threads that waited only on one side of a branch, or after a load of what is "surely" written long since, would break
this: Inductor places its waits by the order of its own sequential program, where the buffers of kernels older than the
previous one need none. Hence the machine code is looked at, not who made it.
"""

from __future__ import annotations

import re

WAIT = "griddepcontrol.wait;"
FUNCTION = re.compile(r"\.(?:entry|func)\b")
# Registers are read and written, and the parameters read, which are constants from before the launch.
ARITHMETIC = r"ld\.param|mov|add|sub|mul|mad|neg|min|max|and|or|xor|not|shl|shr|bfe|cvt|cvta|setp|selp|lop3"
HARMLESS = re.compile(rf"(?:{ARITHMETIC})(?:\.\w+)* [^;]*;|\.(?:reg|local|loc) .*|\$\w+:|")


def may_start_early(ptx: str) -> bool:
    """Whether all threads of the kernel in ``ptx``, its only function, wait for its predecessors before they touch
    memory: nothing but arithmetic, and no branch, is ahead of the wait."""
    lines = [" ".join(line.partition("//")[0].split()) for line in ptx.splitlines()]
    if sum(bool(FUNCTION.search(line)) for line in lines) != 1 or "{" not in lines or WAIT not in lines:
        return False
    return all(HARMLESS.fullmatch(line) for line in lines[lines.index("{") + 1 : lines.index(WAIT)])
