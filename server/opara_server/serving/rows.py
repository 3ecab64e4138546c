"""The rows of a request, and what must be true of them before they may share a batch with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opara_server.engine.spec import TensorSpec
from opara_server.serving.errors import InvalidInput


@dataclass(slots=True)  # not frozen: making a frozen one takes three times as long, and every request makes two
class Rows:
    """``tensors``: one raw row-major little-endian buffer per input (or output) of the model, in the model's order;
    each holds ``count`` rows. Never changed once made. ``into``: of a request, where the device may write the answer
    itself, one writable buffer per output, once all its rows have been read; () where it may not."""

    tensors: tuple[bytes | memoryview, ...]
    count: int
    into: tuple[memoryview, ...] = ()


_UNSIGNED = {f"int{bits}": (f"uint{bits}", 1 << (bits - 1)) for bits in (8, 16, 32, 64)}
"""Of signed integers: the type of as many bits, and the least that is a negative one's."""


class RowChecks:
    """What a model takes: a bad request must never fail the batch of its neighbours."""

    def __init__(self, specs: Sequence[TensorSpec], max_rows: int) -> None:
        self._specs = tuple(specs)
        self._max_rows = max_rows
        self._row_bytes = tuple(spec.row_bytes for spec in specs)
        self._bounded = tuple((i, spec) for i, spec in enumerate(specs) if spec.low is not None and "int" in spec.dtype)

    def check(self, rows: Rows) -> None:
        """Raises InvalidInput unless ``rows`` can be run."""
        count = rows.count
        if not 1 <= count <= self._max_rows:
            raise InvalidInput(_wrong_count(count, self._max_rows))
        tensors = rows.tensors
        if len(tensors) != len(self._row_bytes):
            raise InvalidInput(f"the request has {len(tensors)} inputs, the model takes {len(self._specs)}")
        for index, tensor in enumerate(tensors):
            size = tensor.nbytes if isinstance(tensor, memoryview) else len(tensor)
            if size != count * self._row_bytes[index]:
                name, expected = self._specs[index].name, count * self._row_bytes[index]
                raise InvalidInput(f"input {name!r} has {size} bytes, expected {expected} for {count} rows")
        if not self._bounded:
            return
        for index, spec in self._bounded:
            _check_range(tensors[index], spec)


def _wrong_count(count: int, max_rows: int) -> str:
    if count < 1:
        return "the request has no rows"
    return f"the request has {count} rows, the model takes at most {max_rows} per request"


def _check_range(tensor: bytes | memoryview, spec: TensorSpec) -> None:
    """Integers index tables: one outside its declared range would fail the batch, and on a GPU the whole process."""
    if spec.low is None or spec.high is None or not len(tensor):
        return
    if spec.low == 0 and spec.dtype in _UNSIGNED:  # one look at each: read so, what is below 0 is above all else
        unsigned, negative = _UNSIGNED[spec.dtype]
        outside = int(np.maximum.reduce(np.frombuffer(tensor, dtype=unsigned))) >= min(spec.high, negative)
    else:
        values = np.frombuffer(tensor, dtype=spec.dtype)
        outside = int(values.min()) < spec.low or int(values.max()) >= spec.high  # exact: int64 as a float is not
    if outside:
        raise InvalidInput(f"input {spec.name!r} has values outside [{spec.low:g}, {spec.high:g})")
