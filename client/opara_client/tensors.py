"""numpy arrays and the wire's tensors: row-major, little-endian.

numpy has no bfloat16. Such an output is given as float32, which holds every bfloat16 exactly. A float32 array for an
input that the model declares as bfloat16 is rounded to the nearest bfloat16, ties to even. Nothing else is converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from opara_client.errors import Internal, InvalidArgument
from opara_client.wording import counted
from opara_protos.v1 import inference_pb2 as pb

Array = npt.NDArray[Any]

_WIRE_TYPES: dict[str, pb.DataType.ValueType] = {
    "bool": pb.DATA_TYPE_BOOL,
    "uint8": pb.DATA_TYPE_UINT8,
    "int8": pb.DATA_TYPE_INT8,
    "int16": pb.DATA_TYPE_INT16,
    "int32": pb.DATA_TYPE_INT32,
    "int64": pb.DATA_TYPE_INT64,
    "float16": pb.DATA_TYPE_FLOAT16,
    "bfloat16": pb.DATA_TYPE_BFLOAT16,
    "float32": pb.DATA_TYPE_FLOAT32,
    "float64": pb.DATA_TYPE_FLOAT64,
}
_NAMES: dict[int, str] = {number: name for name, number in _WIRE_TYPES.items()}


def dtype_name(data_type: int) -> str:
    """``"float32"`` of DATA_TYPE_FLOAT32; a type of a newer protocol is ``"unknown (N)"``."""
    return _NAMES.get(data_type, f"unknown ({data_type})")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype in which a tensor of the wire's dtype ``name`` is handed over: float32 for bfloat16."""
    return np.dtype("float32" if name == "bfloat16" else name)


def check_dtypes(inputs: Mapping[str, Array], declared: Mapping[str, str]) -> None:
    """Raises InvalidArgument for an array whose dtype is not the one its input declares (``declared``: dtype by input),
    and TypeError for what is no array.

    Names that the model does not have are left to the server.
    """
    for name, array in inputs.items():
        _check_array(name, array)
        have = array.dtype.newbyteorder("=").name
        want = declared.get(name, have)
        if have not in _WIRE_TYPES:
            raise InvalidArgument(f"input {name!r}: dtype {have} has no place in the protocol")
        if have != numpy_dtype(want).name:
            hint = " (bfloat16 is given as float32)" if want == "bfloat16" else ""
            raise InvalidArgument(f"input {name!r}: expected {want}{hint}, got {have}")


def encode(name: str, array: Array, declared: str = "") -> pb.Tensor:
    """``array`` as a wire tensor, in the dtype it has; float32 is rounded where ``declared`` is bfloat16.

    A dtype that the protocol lacks goes out as unspecified and without data, for the server to refuse. What is no array
    raises TypeError: a list has no dtype of its own, and one that is guessed would surprise.
    """
    _check_array(name, array)
    if array.dtype.newbyteorder("=").name not in _WIRE_TYPES:
        return pb.Tensor(name=name, shape=array.shape)
    dtype, data = to_wire(array, declared)
    return pb.Tensor(name=name, data_type=_WIRE_TYPES[dtype], shape=array.shape, data=data)


def to_wire(array: Array, declared: str = "") -> tuple[str, bytes]:
    """The dtype in which ``array`` goes out, and its bytes; float32 is rounded where ``declared`` is bfloat16."""
    dtype = array.dtype.newbyteorder("=").name
    if dtype == "float32" and declared == "bfloat16":
        dtype, array = declared, _to_bfloat16(array)
    return dtype, array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def decode(tensor: pb.Tensor) -> Array:
    """A read-only array over the message's own bytes; bfloat16 comes as float32. Raises Internal on a broken tensor."""
    name = dtype_name(tensor.data_type)
    if name not in _WIRE_TYPES:
        raise Internal(f"output {tensor.name!r}: {name} dtype in the answer")
    return from_wire(tensor.name, name, tuple(tensor.shape), tensor.data)


def from_wire(output: str, dtype: str, shape: tuple[int, ...], data: bytes) -> Array:
    """A read-only array over ``data``; bfloat16 comes as float32. Raises Internal where the shape has another size."""
    stored = np.dtype("<u2") if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<")
    if any(size < 0 for size in shape) or prod(shape) * stored.itemsize != len(data):
        raise Internal(f"output {output!r}: the answer has {counted(len(data), 'byte')} for {dtype} {list(shape)}")
    array = np.frombuffer(data, stored).reshape(shape)
    return _from_bfloat16(array) if dtype == "bfloat16" else array


def _check_array(name: str, value: object) -> None:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"input {name!r} must be a numpy array, got {type(value).__name__}")


def _to_bfloat16(array: Array) -> Array:
    """float32 to the bits of bfloat16, rounded to nearest, ties to even; NaN stays a (quiet) NaN."""
    bits = array.astype(np.float32, copy=False).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # Rounding could carry a NaN's payload into the sign, or drop it and leave an infinity.
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(array), quiet, rounded).astype(np.uint16)


def _from_bfloat16(bits: Array) -> Array:
    array = (bits.astype(np.uint32) << 16).view(np.float32)
    array.flags.writeable = False  # as every other output
    return array
