"""Arrays from what the command line gives for a model's inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from opara_client.models import TensorSpec
from opara_client.tensors import Array, numpy_dtype

_NPY = b"\x93NUMPY"
_ZIP = b"PK"


class InputError(Exception):
    """The command line cannot be made into an array."""


def parse_inputs(arguments: Sequence[str]) -> dict[str, str]:
    """``["image=@a.npy"]`` to ``{"image": "@a.npy"}``."""
    values: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not (name and equals and value):
            raise InputError(f"--input {argument}: expected NAME=@FILE.npy, NAME=JSON or NAME=random")
        if name in values:
            raise InputError(f"--input {argument}: {name!r} was given before")
        values[name] = value
    return values


def make_inputs(values: Mapping[str, str], specs: Sequence[TensorSpec], rows: int | None) -> dict[str, Array]:
    """An array for each value; JSON and random ones in the dtype that the model declares. ``rows``: of random ones;
    None: as many as the first of the others has, or 1."""
    by_name = {spec.name: spec for spec in specs}
    if unknown := [name for name in values if name not in by_name]:
        raise InputError(f"the model has no input {unknown[0]!r}; it has {', '.join(by_name) or 'none'}")
    if rows is not None and rows < 0:
        raise InputError(f"--rows {rows}: must not be negative")
    given = {name: _given(value, by_name[name]) for name, value in values.items() if value != "random"}
    if rows is None:
        rows = next((len(array) for array in given.values() if array.ndim), 1)
    random = np.random.default_rng(0)
    return {
        name: given[name] if name in given else random_array(random, by_name[name], (rows, *by_name[name].shape[1:]))
        for name in values
    }


def _given(value: str, spec: TensorSpec) -> Array:
    return load_array(value[1:]) if value.startswith("@") else _from_json(value, spec)


def random_array(random: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """In the input's range; without one, floats are standard normal, all else is 0 or 1."""
    dtype = numpy_dtype(spec.dtype)
    if dtype.kind == "b" or spec.low is None or spec.high is None:
        values = random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 2, shape)
        return values.astype(dtype)
    if dtype.kind == "f":
        share = random.random(shape)
        return (spec.low * (1 - share) + spec.high * share).astype(dtype)  # high - low might be infinite
    return random.integers(int(spec.low), int(spec.high), shape, dtype)


def load_array(path: str) -> Array:
    """The one array of a ``.npy`` file."""
    array = _load(path)
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: holds several arrays, expected one (.npy)")
    return array


def load_arrays(path: str) -> dict[str, Array]:
    """The arrays of a ``.npz`` file, by name."""
    arrays = _load(path)
    if isinstance(arrays, np.ndarray):
        raise InputError(f"{path}: holds one array without a name, expected several (.npz)")
    return arrays


def _load(path: str) -> Array | dict[str, Array]:
    try:
        with Path(path).open("rb") as file:
            if not file.read(len(_NPY)).startswith((_NPY, _ZIP)):  # all else NumPy takes for a pickle
                raise InputError(f"{path}: neither a .npy nor a .npz file")
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            with loaded:
                return dict(loaded)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"{path}: {error}") from error


def _from_json(text: str, spec: TensorSpec) -> Array:
    """The literal in the declared dtype, if that holds it: floats may be rounded, anything else must be exact."""
    dtype = numpy_dtype(spec.dtype)
    try:
        literal = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"input {spec.name!r}: not a JSON literal, @FILE.npy or random: {error}") from error
    try:
        array = np.asarray(literal)
    except ValueError as error:
        raise InputError(f"input {spec.name!r}: the literal's rows are not all of one shape") from error
    fits = array.dtype.kind == "b" if dtype.kind == "b" else array.dtype.kind in "iuf"
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype) if fits else array
    if not fits or (dtype.kind != "f" and not np.array_equal(cast, array)):
        raise InputError(f"input {spec.name!r}: the literal does not fit {spec.dtype}")
    return cast
