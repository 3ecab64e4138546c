"""Requests' tensors to rows: everything a client may get wrong in them is found here, before any work.

Texts name the input, what was expected and what came. Whatever the client chose in them is cut and escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from opara_protos.v1 import inference_pb2 as pb
from opara_server.engine.spec import ELEMENT_BYTES, TensorSpec
from opara_server.serving.errors import InvalidInput
from opara_server.serving.rows import Rows

DATA_TYPES: dict[str, pb.DataType.ValueType] = {
    name: pb.DataType.Value(f"DATA_TYPE_{name.upper()}") for name in ELEMENT_BYTES
}
_TYPE_NAMES = {number: name for name, number in DATA_TYPES.items()}
_OUR_WORDS = {name: name for name in ELEMENT_BYTES}
_SHOWN = 48  # characters of a client's name, names of a list and sizes of a shape that an error text repeats: 48, 16, 8

M = TypeVar("M", bound=Message)


def parse(kind: type[M], message: bytes) -> M:
    """``message`` as a ``kind``. Raises InvalidInput where it is none."""
    try:
        return kind.FromString(message)
    except (DecodeError, ValueError):  # upb raises the first, protobuf in pure Python also the second
        raise InvalidInput(f"the bytes are no {kind.DESCRIPTOR.full_name}") from None


class WireTensor(NamedTuple):
    """A tensor as it came. ``data_type``: in the words of its protocol, fit to be shown."""

    name: str
    data_type: str
    shape: Sequence[int]
    data: bytes


def decode(request: pb.InferRequest, inputs: Sequence[TensorSpec], max_rows: int) -> Rows:
    """The request's tensors, in the order of ``inputs``. Raises InvalidInput where they do not fit the model."""
    tensors = (
        WireTensor(t.name, _TYPE_NAMES.get(t.data_type, f"data type {t.data_type}"), t.shape, t.data)
        for t in request.inputs
    )
    return decode_tensors(tensors, inputs, max_rows, _OUR_WORDS)


def decode_tensors(
    tensors: Iterable[WireTensor], inputs: Sequence[TensorSpec], max_rows: int, words: Mapping[str, str]
) -> Rows:
    """``words``: the protocol's names of element types. Raises InvalidInput."""
    specs = {spec.name: spec for spec in inputs}
    buffers: dict[str, bytes] = {}
    count, first = 0, ""
    for tensor in tensors:
        name = tensor.name
        spec = specs.get(name)
        if spec is None:
            raise InvalidInput(f"unknown input {shown(name)}: the model takes {_listed(specs)}")
        if name in buffers:
            raise InvalidInput(f"input {name!r} came more than once")
        rows = _check_shape(tensor, spec, max_rows, words[spec.dtype])
        if buffers and rows != count:
            raise InvalidInput(f"input {name!r} has {rows} rows, but input {first!r} has {count}")
        if not buffers:
            count, first = rows, name
        buffers[name] = _check_data(tensor.data, spec, rows, words[spec.dtype])
    missing = [spec.name for spec in inputs if spec.name not in buffers]
    if missing:
        raise InvalidInput(f"missing input: {_listed(missing)}")
    return Rows(tuple(buffers[spec.name] for spec in inputs), count)


def wanted_outputs(names: Sequence[str], outputs: Sequence[TensorSpec]) -> tuple[int, ...]:
    """Indices into ``outputs`` of the ``names`` that a request asks for, in its order; all where there are none."""
    if not names:
        return tuple(range(len(outputs)))
    indices = {spec.name: index for index, spec in enumerate(outputs)}
    wanted: list[int] = []
    for name in names:
        index = indices.get(name)
        if index is None:
            raise InvalidInput(f"unknown output {shown(name)}: the model gives {_listed(indices)}")
        if index in wanted:
            raise InvalidInput(f"output {name!r} is asked for more than once")
        wanted.append(index)
    return tuple(wanted)


def spec_message(spec: TensorSpec) -> pb.TensorSpec:
    shape = (-1, *spec.shape)
    return pb.TensorSpec(name=spec.name, data_type=DATA_TYPES[spec.dtype], shape=shape, low=spec.low, high=spec.high)


def _check_shape(tensor: WireTensor, spec: TensorSpec, max_rows: int, data_type: str) -> int:
    """The tensor's number of rows, 1 <= rows <= max_rows. Raises InvalidInput."""
    if tensor.data_type != data_type:
        raise InvalidInput(f"input {spec.name!r}: expected {data_type}, got {tensor.data_type}")
    shape = tensor.shape
    if len(shape) != 1 + len(spec.shape) or tuple(shape[1:]) != spec.shape:
        expected = ", ".join(map(str, ("rows", *spec.shape)))
        raise InvalidInput(f"input {spec.name!r}: expected shape [{expected}], got {_shape(shape)}")
    rows = shape[0]
    if not 1 <= rows <= max_rows:
        raise InvalidInput(f"input {spec.name!r}: expected 1 to {max_rows} rows, got {rows}")
    return rows


def _check_data(data: bytes, spec: TensorSpec, rows: int, data_type: str) -> bytes:
    """``data`` where it holds exactly ``rows`` rows. Raises InvalidInput."""
    expected = rows * spec.row_bytes
    if len(data) != expected:
        raise InvalidInput(
            f"input {spec.name!r}: expected {expected} bytes of data "
            f"({rows * prod(spec.shape)} x {data_type}), got {len(data)}"
        )
    return data


def shown(name: str) -> str:
    """What a client chose, cut, escaped and quoted."""
    return ascii(name if len(name) <= _SHOWN else f"{name[: _SHOWN - 3]}...")


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:16]) + (f" and {len(shown) - 16} more" if len(shown) > 16 else "")


def _shape(shape: Sequence[int]) -> str:
    rest = f", ... ({len(shape)} dimensions)" if len(shape) > 8 else ""
    return f"[{', '.join(map(str, shape[:8]))}{rest}]"
