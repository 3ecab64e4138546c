"""What graphs on the GPU answer, beside what eager PyTorch does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from opara_server.engine.verify import error_norm

BOUND = 1e-2  # error norm of float16 against eager's float16
TIPPED = 0.02  # of integers, where some come from rounded numbers: a wrong graph has most of them wrong

Agree = Callable[[Sequence[Tensor], Sequence[Tensor]], None]


@contextmanager
def agreeing(bound: float = BOUND, tipped: float = TIPPED) -> Iterator[Agree]:
    """To be called with a graph's outputs and eager's, time after time. Floats may differ by ``bound`` each time, of
    all integers and bools together no more than the share ``tipped``."""
    wrong = count = 0

    def agree(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        nonlocal wrong, count
        for out, ref in zip(outputs, expected, strict=True):
            assert (out.shape, out.dtype) == (ref.shape, ref.dtype)
            if out.is_floating_point():
                assert error_norm(out, ref) <= bound
            else:
                wrong += int((out != ref).sum())
                count += out.numel()

    yield agree
    assert wrong <= tipped * count, f"{wrong} of {count} integers differ from eager's"
