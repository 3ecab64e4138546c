"""What the requests of a load carry: arrays from files, and random ones where none are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opara_client.inputs import InputError, load_array, load_arrays, random_array
from opara_client.models import TensorSpec
from opara_client.tensors import Array, numpy_dtype
from opara_client.wording import counted

Inputs = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Wanted:
    """``files``: arrays by input, cut into payloads of ``rows`` rows. ``shapes``: by input, the sizes behind the batch
    dimension, where the model leaves them open. ``count``: payloads of a load that is all random."""

    files: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]
    rows: int
    count: int


def read_files(arguments: Sequence[str]) -> Inputs:
    """``["image=@a.npy", "@rest.npz"]`` to arrays by input."""
    arrays: Inputs = {}
    for argument in arguments:
        name, at, path = argument.partition("@")
        if not (at and path and (not name or (name.endswith("=") and len(name) > 1))):
            raise InputError(f"--input {argument}: expected NAME=@FILE.npy or @FILE.npz")
        found = {name[:-1]: load_array(path)} if name else load_arrays(path)
        twice = arrays.keys() & found.keys()
        if twice:
            raise InputError(f"--input {argument}: {min(twice)!r} was given before")
        arrays |= found
    return arrays


def parse_shapes(arguments: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """``["tokens=128"]`` to sizes by input."""
    shapes = {}
    for argument in arguments:
        name, _, sizes = argument.partition("=")
        try:
            shape = tuple(int(size) for size in sizes.split(","))
        except ValueError as error:
            raise InputError(f"--shape {argument}: expected NAME=SIZE,SIZE,...") from error
        if not name or min(shape) < 0:
            raise InputError(f"--shape {argument}: expected NAME=SIZE,SIZE,...")
        shapes[name] = shape
    return shapes


def batches(specs: Sequence[TensorSpec]) -> bool:
    """Whether the first dimension of the model's inputs counts rows; believed of a model that declares no inputs."""
    return not specs or any(spec.shape[:1] == (-1,) for spec in specs)


def make_payloads(specs: Sequence[TensorSpec], wanted: Wanted) -> list[Inputs]:
    """The inputs of each payload, the same every time; raises InputError where they cannot be made."""
    if wanted.rows != 1 and not batches(specs):
        raise InputError(f"--rows {wanted.rows}: the model has no batch dimension")
    if not specs and not wanted.files:
        raise InputError("the server does not say what the model takes: give --input for each input")
    declared = {spec.name: spec for spec in specs}
    unknown = [name for name in (*wanted.files, *wanted.shapes) if specs and name not in declared]
    if unknown:
        raise InputError(f"the model has no input {unknown[0]!r}; it has {', '.join(declared)}")
    pieces = {
        name: _cut(name, array, declared.get(name), wanted.rows, batches(specs)) for name, array in wanted.files.items()
    }
    counts = {len(cut) for cut in pieces.values()} or {wanted.count}
    if len(counts) > 1:
        raise InputError("the inputs' files do not have the same number of rows")
    generator = np.random.default_rng(0)
    drawn = {spec.name: (spec, _shape(spec, wanted)) for spec in specs if spec.name not in pieces}
    return [
        {name: cut[index] for name, cut in pieces.items()}
        | {name: random_array(generator, spec, shape) for name, (spec, shape) in drawn.items()}
        for index in range(min(counts))
    ]


def _cut(name: str, array: Array, spec: TensorSpec | None, rows: int, batched: bool) -> list[Array]:
    """``array`` as payloads of ``rows`` rows; what is left over is not used."""
    have = array.dtype.newbyteorder("=")
    if spec is not None and have != _dtype(spec):
        raise InputError(f"input {name!r}: expected {spec.dtype}, got {have}")
    if not batched:
        return [array]
    count = len(array) // rows if array.ndim else 0
    if count == 0:
        raise InputError(f"input {name!r}: its file has not the {counted(rows, 'row')} of a request")
    return [array[index * rows : (index + 1) * rows] for index in range(count)]


def _shape(spec: TensorSpec, wanted: Wanted) -> tuple[int, ...]:
    _dtype(spec)
    first = (wanted.rows,) if spec.shape[:1] == (-1,) else ()
    shape = first + wanted.shapes.get(spec.name, spec.shape[len(first) :])
    if min(shape, default=0) < 0:
        raise InputError(
            f"input {spec.name!r}: the model leaves {list(spec.shape)} open: give --shape {spec.name}=SIZE,..."
        )
    return shape


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    try:
        return numpy_dtype(spec.dtype)
    except TypeError as error:
        raise InputError(f"input {spec.name!r}: {spec.dtype} is not supported") from error
