"""What a client may get wrong in a request of the Open Inference Protocol, beside its tensors' shapes and sizes.

Parameters: ``priority`` and ``timeout`` of a request are done; those that would change the answer and are not done
(sequences, shared memory, classification, whatever Triton reserves) are refused; all others are for models that take
parameters, which none does here, and are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from opara_server.rpc.wire import WireTensor, shown
from opara_server.serving.errors import InvalidInput

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}
_OTHERS = {"UINT16", "UINT32", "UINT64", "BYTES"}
_KNOWN = {*DATATYPES.values(), *_OTHERS}
_TYPED = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
_DTYPES = {datatype: np.dtype(dtype) for dtype, datatype in DATATYPES.items() if datatype in _TYPED}
_REFUSED = ("sequence_", "triton_", "shared_memory_", "classification")  # how their names begin
_INT64 = 2**63


def tensors(request: Any) -> Iterator[WireTensor]:
    """Of a ModelInferRequest. Raises InvalidInput."""
    inputs, raw = request.inputs, list(request.raw_input_contents)
    if raw and len(raw) != len(inputs):
        raise InvalidInput(f"expected one entry of raw_input_contents for each of {len(inputs)} inputs, got {len(raw)}")
    for index, tensor in enumerate(inputs):
        check_parameters(tensor.parameters, f"input {shown(tensor.name)}: ")
        if raw and tensor.HasField("contents"):
            raise InvalidInput(f"input {shown(tensor.name)}: contents beside raw_input_contents")
        data_type = tensor.datatype if tensor.datatype in _KNOWN else shown(tensor.datatype)
        data = raw[index] if raw else _typed(tensor)
        yield WireTensor(tensor.name, data_type, tensor.shape, data)


def output_names(request: Any) -> list[str]:
    """Those that a ModelInferRequest asks for. Raises InvalidInput."""
    for output in request.outputs:
        check_parameters(output.parameters, f"output {shown(output.name)}: ")
    return [output.name for output in request.outputs]


def check_parameters(parameters: Any, whose: str = "") -> None:
    """Raises InvalidInput where one of them must not be ignored."""
    for name in sorted(parameters):  # as a map has them, in no order
        if name.startswith(_REFUSED):
            raise InvalidInput(f"{whose}parameter {shown(name)} is not supported")


def number(parameters: Any, name: str) -> int:
    """The parameter's value, 0 where there is none. Raises InvalidInput."""
    if name not in parameters:
        return 0
    value = parameters[name]
    kind = value.WhichOneof("parameter_choice")
    found = getattr(value, kind) if kind in {"int64_param", "uint64_param"} else -1
    if not 0 <= found < _INT64:
        raise InvalidInput(f"parameter {name!r}: expected an integer of 0 or more")
    return int(found)


def _typed(tensor: Any) -> bytes:
    """The values of ``tensor.contents`` as raw bytes. Raises InvalidInput."""
    field = _TYPED.get(tensor.datatype)
    filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if filled and tensor.datatype in _KNOWN and filled != [field]:
        where = f"in {field} or " if field else "only "
        raise InvalidInput(
            f"input {shown(tensor.name)}: {tensor.datatype} values come {where}in raw_input_contents, "
            f"not in {', '.join(filled)}"
        )
    if field is None:
        return b""
    values = np.array(getattr(tensor.contents, field))
    narrow = values.astype(_DTYPES[tensor.datatype])
    if values.dtype.kind in "iu" and not np.array_equal(values, narrow):
        raise InvalidInput(f"input {shown(tensor.name)}: values outside of {tensor.datatype}")
    return narrow.tobytes()
