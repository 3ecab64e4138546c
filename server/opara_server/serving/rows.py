"""The rows of a request, and what must be true of them before they may share a batch with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opara_server.engine.spec import TensorSpec
from opara_server.serving.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Rows:
    """``tensors``: one raw row-major little-endian buffer per input (or output) of the model, in the model's order;
    each holds ``count`` rows."""

    tensors: tuple[bytes | memoryview, ...]
    count: int


def check_rows(rows: Rows, specs: Sequence[TensorSpec], max_rows: int) -> None:
    """Raise InvalidInput unless ``rows`` can be run: a bad request must never fail the batch of its neighbours."""
    if rows.count < 1:
        raise InvalidInput("the request has no rows")
    if rows.count > max_rows:
        raise InvalidInput(f"the request has {rows.count} rows, the model takes at most {max_rows} per request")
    if len(rows.tensors) != len(specs):
        raise InvalidInput(f"the request has {len(rows.tensors)} inputs, the model takes {len(specs)}")
    for tensor, spec in zip(rows.tensors, specs, strict=True):
        expected = rows.count * spec.row_bytes
        size = tensor.nbytes if isinstance(tensor, memoryview) else len(tensor)
        if size != expected:
            raise InvalidInput(f"input {spec.name!r} has {size} bytes, expected {expected} for {rows.count} rows")
        _check_range(tensor, spec)


def _check_range(tensor: bytes | memoryview, spec: TensorSpec) -> None:
    """Integers index tables: one outside its declared range would fail the batch, and on a GPU the whole process."""
    if spec.low is None or spec.high is None or "int" not in spec.dtype or not len(tensor):
        return
    values = np.frombuffer(tensor, dtype=spec.dtype)
    if int(values.min()) < spec.low or int(values.max()) >= spec.high:  # exact: int64 as a float is not
        raise InvalidInput(f"input {spec.name!r} has values outside [{spec.low:g}, {spec.high:g})")
