"""Triton kernels that may start early, or wrongly would; importing this needs Triton.

Each adds one, slowly, and lets what follows start at once.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def waiting_kernel(x, out, turns, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at)
    for _ in range(turns):
        value = tl.sin(value)  # of integers' exact values nothing is left; they are read again
    tl.store(out + at, tl.load(x + at) + 1 + value * 0)


@triton.jit  # type: ignore[untyped-decorator]
def hasty_kernel(x, out, turns, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Loads before it waits."""
    tl.extra.cuda.gdc_launch_dependents()
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at)
    loaded = value
    tl.extra.cuda.gdc_wait()
    for _ in range(turns):
        value = tl.sin(value)
    tl.store(out + at, loaded + 1 + value * 0)
