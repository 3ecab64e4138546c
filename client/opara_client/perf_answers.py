"""Whether an answer is right: it has the shapes, and where wanted the values, of the first answer to its request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from opara_client.errors import Internal
from opara_client.models import TensorSpec
from opara_client.tensors import Array

Fault = Literal["undecodable", "shape", "values"]


def check_first(outputs: Mapping[str, Array], specs: Sequence[TensorSpec], rows: int | None) -> None:
    """Raises Internal unless ``outputs`` has all that the model declares, in the declared shapes.

    ``specs``: empty where the server declares none. ``rows``: of the request, the first dimension of every output that
    declares -1 there; None for a model without a batch dimension.
    """
    for spec in specs:
        array = outputs.get(spec.name)
        if array is None:
            raise Internal(f"the answer lacks output {spec.name!r}")
        want = spec.shape if rows is None or spec.shape[:1] != (-1,) else (rows, *spec.shape[1:])
        fits = len(array.shape) == len(want) and all(
            size in (have, -1) for size, have in zip(want, array.shape, strict=True)
        )
        if not fits:
            raise Internal(f"output {spec.name!r}: expected shape {list(want)}, got {list(array.shape)}")


def fault(outputs: Mapping[str, Array], first: Mapping[str, Array], tolerance: float | None) -> Fault | None:
    """What is wrong with ``outputs``, given the ``first`` answer to the same request; None if nothing is.

    ``tolerance``: the largest error norm ||output - first|| / ||first|| of a floating-point output, 0 for equality;
    None leaves values unchecked. Other outputs must be equal.
    """
    if _shapes(outputs) != _shapes(first):
        return "shape"
    if tolerance is None or all(_close(array, first[name], tolerance) for name, array in outputs.items()):
        return None
    return "values"


def _shapes(outputs: Mapping[str, Array]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (array.dtype.str, array.shape) for name, array in outputs.items()}


def _close(array: Array, first: Array, tolerance: float) -> bool:
    floating = array.dtype.kind == "f"
    if tolerance == 0 or not floating or not array.size:
        return np.array_equal(array, first, equal_nan=floating)
    have, want = array.astype(np.float64), first.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(have[~finite], want[~finite], equal_nan=True):
        return False
    error = np.linalg.norm(have[finite] - want[finite])
    return bool(error <= tolerance * np.linalg.norm(want[finite]))
