"""Programs as JSON and tensors, so that a plan can be run again without lowering and compiling anything.

JSON holds the operator graph, the calls and where values lie; tensors are named by their content, so that what the
programs of several batch sizes have in common is there once, and so are long texts. The model's own weights are told by
name, not saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from opara_server.engine.calls import refs
from opara_server.engine.errors import LoweringError
from opara_server.engine.graph import OperatorGraph
from opara_server.engine.kernel import KernelCode, KernelLaunch
from opara_server.engine.program import Call, Placed, Program, Ref
from opara_server.engine.tensors import dtype_name, torch_dtype

FUNCTIONS: dict[str, Callable[..., Any]] = {"getitem": getitem, "as_strided": torch.as_strided}
NAMES = {function: name for name, function in FUNCTIONS.items()}

LONG = 256  # characters: such texts, as cuDNN's plans, would fill the JSON, which safetensors reads up to 100 MB of

Json = dict[str, Any]


class UnsavableError(LoweringError):
    """A program that cannot be written down: it calls a Python function, or holds a tensor of an unusual kind."""


class ProgramWriter:
    """Collects programs of one model. ``tensors``: what they need besides the model's ``weights``, by content: bytes of
    storages, of machine code and of long texts, uint8 vectors."""

    def __init__(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """``weights``: by name; a name may come more than once, with copies of one weight."""
        self.tensors: dict[str, Tensor] = {}
        self._weights = dict(_by_storage(weights))
        self._contents: dict[str, tuple[str, Tensor]] = {}
        for name, tensor in self._weights.values():
            self._contents[content_digest(_bytes(tensor))] = (name, tensor)

    def write(self, program: Program) -> Json:
        """Raises UnsavableError."""
        calls = [call for body in program.bodies for call in body] + list(program.allocations)
        calls += [view for placed in program.arena for view in placed.views]
        used = {ref.value for call in calls for ref in refs((call.args, dict(call.kwargs)))} | set(program.outputs)
        inputs = {tensor.untyped_storage()._cdata: number for number, tensor in enumerate(program.inputs)}
        return {
            "lowering": program.lowering,
            "graph": program.graph.to_json(),
            "bodies": [[self._call(call) for call in body] for body in program.bodies],
            "value_count": program.value_count,
            "fixed": {str(v): self._fixed(tensor, inputs) for v, tensor in program.fixed.items() if v in used},
            "buffer_values": program.buffer_values,
            "inputs": [_layout(tensor) for tensor in program.inputs],
            "outputs": program.outputs,
            "traffic": program.traffic,
            "arena": [self._placed(placed) for placed in program.arena],
            "allocations": [self._call(call) for call in program.allocations],
        }

    def _placed(self, placed: Placed) -> Json:
        return {
            "buffer": placed.buffer,
            "value": placed.value,
            "dtype": dtype_name(placed.dtype),
            "shape": placed.shape,
            "stride": placed.stride,
            "views": [self._call(view) for view in placed.views],
        }

    def _call(self, call: Call) -> Json:
        return {
            "target": self._target(call.target),
            "args": self._encode(call.args),
            "kwargs": {name: self._encode(value) for name, value in call.kwargs.items()},
            "result": call.result,
        }

    def _target(self, target: Callable[..., Any]) -> Json:
        if isinstance(target, OpOverload):
            return {"operator": str(target)}
        if isinstance(target, KernelLaunch):
            code = target.code
            about = {name: value for name, value in asdict(code).items() if name != "cubin"}
            return {
                "kernel": {**about, "cubin": self._keep_bytes(code.cubin)},
                "grid": target.grid,
                "types": target.types,
                "early": target.early,
                "flops": target.flops,
            }
        if target in NAMES:
            return {"function": NAMES[target]}
        raise UnsavableError(f"a call of {getattr(target, '__name__', target)}")

    def _fixed(self, tensor: Any, inputs: Mapping[int, int]) -> Json:
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise UnsavableError(f"a constant of type {type(tensor).__name__}")
        storage = tensor.untyped_storage()
        layout = {**_layout(tensor), "conj": tensor.is_conj(), "neg": tensor.is_neg()}
        if storage._cdata in inputs:
            return {"input": inputs[storage._cdata], **layout, "offset": tensor.storage_offset()}
        content = _bytes(tensor)
        known = self._weights.get(storage._cdata) or self._contents.get(content_digest(content))
        if known is None:
            return {"tensor": self._keep(content), **layout, "offset": tensor.storage_offset()}
        name, weight = known
        offset = int(tensor.storage_offset() - weight.storage_offset())  # elsewhere it may lie in another storage
        return {"weight": name, "weight_stride": weight.stride(), **layout, "offset": offset}

    def _encode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._encode(item) for item in value]
        if isinstance(value, tuple):
            return {"tuple": [self._encode(item) for item in value]}
        if isinstance(value, str):
            return value if len(value) <= LONG else {"text": self._keep_bytes(value.encode())}
        if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
            return value
        for kind, (name, encode) in _ENCODERS.items():
            if isinstance(value, kind):
                return {name: encode(value)}
        raise UnsavableError(f"an argument of type {type(value).__name__}")

    def _keep_bytes(self, data: bytes) -> str:
        return self._keep(torch.frombuffer(bytearray(data), dtype=torch.uint8))

    def _keep(self, data: Tensor) -> str:
        digest = content_digest(data)
        self.tensors.setdefault(digest, data)
        return digest


def _by_storage(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[int, tuple[str, Tensor]]]:
    return ((tensor.untyped_storage()._cdata, (name, tensor)) for name, tensor in weights)


def _bytes(tensor: Tensor) -> Tensor:
    """Of its whole storage, on the CPU."""
    empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return empty.set_(tensor.untyped_storage()).cpu()


def content_digest(data: Tensor) -> str:
    """By which a tensor of bytes is named."""
    return sha256(data.numpy().tobytes()).hexdigest()


class ProgramReader:
    """The inverse, on ``device``: the programs it reads share the ``tensors`` that they have in common."""

    def __init__(self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self._weights = weights
        self._tensors = tensors
        self._device = device
        self._there: dict[str, Tensor] = {}
        self._codes: dict[str, KernelCode] = {}
        self._texts: dict[str, str] = {}

    def read(self, data: Json, inputs: Sequence[Tensor]) -> Program:
        """The program, bound to these static inputs. Raises ValueError, KeyError, TypeError, AttributeError or
        RuntimeError on what ``write`` has not made here, and ValueError for inputs of another layout."""
        if [_layout(tensor) for tensor in inputs] != [_tupled(layout) for layout in data["inputs"]]:
            raise ValueError("the program is for other inputs")
        return Program(
            lowering=data["lowering"],
            graph=OperatorGraph.from_json(data["graph"]),
            bodies=tuple(tuple(map(self._call, body)) for body in data["bodies"]),
            value_count=data["value_count"],
            fixed={int(value): self._fixed(home, inputs) for value, home in data["fixed"].items()},
            buffer_values=tuple(map(tuple, data["buffer_values"])),
            inputs=tuple(inputs),
            outputs=tuple(data["outputs"]),
            traffic=tuple(data["traffic"]),
            arena=tuple(self._placed(placed) for placed in data["arena"]),
            allocations=tuple(map(self._call, data["allocations"])),
        )

    def _placed(self, data: Json) -> Placed:
        shape, stride = tuple(data["shape"]), tuple(data["stride"])
        views = tuple(map(self._call, data["views"]))
        return Placed(data["buffer"], data["value"], torch_dtype(data["dtype"]), shape, stride, views)

    def _call(self, data: Json) -> Call:
        kwargs = {name: self._decode(value) for name, value in data["kwargs"].items()}
        return Call(self._target(data["target"]), self._decode(data["args"]), kwargs, data["result"])

    def _target(self, data: Json) -> Callable[..., Any]:
        if "function" in data:
            return FUNCTIONS[data["function"]]
        if "kernel" in data:
            code, grid, types = self._code(data["kernel"]), tuple(data["grid"]), tuple(data["types"])
            return KernelLaunch(code, grid, types, data["early"], data["flops"])
        namespace, name, overload = data["operator"].split(".")
        found: OpOverload[..., Any] = getattr(getattr(getattr(torch.ops, namespace), name), overload)
        return found

    def _code(self, data: Json) -> KernelCode:
        cubin = data["cubin"]
        if cubin not in self._codes:
            data = {**data, "cubin": self._tensors[cubin].numpy().tobytes()}
            self._codes[cubin] = KernelCode(**data)
        return self._codes[cubin]

    def _fixed(self, data: Json, inputs: Sequence[Tensor]) -> Tensor:
        offset: int = data["offset"]
        if "input" in data:
            home = inputs[data["input"]]
        elif "weight" in data:
            home = self._weights[data["weight"]]
            if home.stride() != tuple(data["weight_stride"]):
                raise ValueError(f"weight {data['weight']} has another layout")
            offset += int(home.storage_offset())
        else:
            digest = data["tensor"]
            if digest not in self._there:
                self._there[digest] = self._tensors[digest].to(self._device)
            home = self._there[digest]
        empty = torch.empty(0, dtype=torch_dtype(data["dtype"]), device=self._device)
        layout = tuple(data["shape"]), tuple(data["stride"])
        storage, end = home.untyped_storage(), offset + sum((n - 1) * s for n, s in zip(*layout, strict=True)) + 1
        if offset < 0 or (0 not in layout[0] and end * empty.element_size() > storage.nbytes()):
            raise ValueError(f"a constant lies beyond the {storage.nbytes()} bytes of {data}")
        tensor = empty.set_(storage, offset, *layout)
        tensor = torch.conj(tensor) if data["conj"] else tensor
        return torch._neg_view(tensor) if data["neg"] else tensor

    def _decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, held),) = value.items()
        if kind == "device":  # of the same kind, as the fingerprint says, but not of the same number
            return self._device if held == self._device.type else torch.device(held)
        if kind == "text":
            if held not in self._texts:
                self._texts[held] = self._tensors[held].numpy().tobytes().decode()
            return self._texts[held]
        return _DECODERS[kind](held) if kind != "tuple" else tuple(self._decode(item) for item in held)


_ENCODERS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    Ref: ("ref", lambda ref: ref.value),
    float: ("float", repr),
    complex: ("complex", lambda number: [number.real, number.imag]),
    torch.dtype: ("dtype", dtype_name),
    torch.device: ("device", lambda device: device.type),
    torch.layout: ("constant", lambda layout: str(layout).removeprefix("torch.")),
    torch.memory_format: ("constant", lambda memory_format: str(memory_format).removeprefix("torch.")),
}
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "ref": Ref,
    "float": float,
    "dtype": torch_dtype,
    "constant": lambda name: getattr(torch, name),
    "complex": lambda parts: complex(*parts),
}


def _layout(tensor: Tensor) -> Json:
    return {"dtype": dtype_name(tensor.dtype), "shape": tuple(tensor.shape), "stride": tensor.stride()}


def _tupled(layout: Json) -> Json:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in layout.items()}
