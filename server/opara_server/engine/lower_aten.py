"""The `aten` lowering: an exported module → a program whose operators are the ATen calls PyTorch itself would make.

The exported graph is run once on real tensors of the bucket's shape. That run decides what is what, exactly and for
every operator alike: a call whose results live in storages that existed before is a view; one that depends on weights
alone is computed once, now; everything else that makes or changes a storage is an operator, and the storages it
touches give its edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.fx import GraphModule, Node

from opara_server.engine.errors import LoweringError, ModelError
from opara_server.engine.graph import Buffer, Kind, Operator, OperatorGraph
from opara_server.engine.program import Call, Program, Ref

aten = torch.ops.aten
ALLOCATIONS = {aten.empty, aten.empty_like, aten.empty_strided, aten.empty_permuted, aten.new_empty, aten.new_empty_strided}
CHECKS = {aten._assert_tensor_metadata, aten._assert_scalar, aten.sym_constrain_range, aten.sym_constrain_range_for_size}
SHAPE_READS = {aten.sym_size, aten.sym_stride, aten.sym_numel, aten.sym_storage_offset}


@dataclass
class _Storage:
    """One storage seen in the trial run, and the first value that covers it."""

    kind: Kind
    size: int
    value: int
    views: list[int] = field(default_factory=list)
    name: str = ""  # of the weight, to name it in errors
    mutated: bool = False  # written by somebody other than the call that made it


@dataclass
class _Event:
    """One call of the trial run that makes or changes storages."""

    node: Node
    call: Call
    reads: list[int]
    writes: list[int]
    creates: list[int]
    traffic: int
    views: list[Call] = field(default_factory=list)

    @property
    def allocation(self) -> bool:
        return getattr(self.node.target, "overloadpacket", None) in ALLOCATIONS


def lower(exported: ExportedProgram, inputs: Sequence[Tensor]) -> Program:
    """The program of ``exported`` for exactly these static inputs (shapes, strides, addresses).

    Raises LoweringError for what cannot be taken apart into operators (data-dependent values, control flow), ModelError
    where the module writes to its own weights.
    """
    trial = _Trial(exported, inputs)
    trial.run()
    return trial.program()


class _Trial:
    """The run on real tensors, and what it found out. Values and storages are numbered as they appear."""

    def __init__(self, exported: ExportedProgram, inputs: Sequence[Tensor]) -> None:
        self._exported = exported
        self._inputs = tuple(inputs)
        self._values: list[Any] = []
        self._storages: list[_Storage] = []
        self._storage_of: dict[int, int] = {}  # address of the StorageImpl → index; all storages stay alive meanwhile
        self._events: list[_Event] = []
        self._creator: dict[int, _Event] = {}  # by storage
        self._outputs: list[int] = []

    def run(self) -> None:
        environment = dict(self._placeholders())
        results = self._interpret(self._exported.graph_module, environment)
        self._outputs = [self._output(result) for result in results if isinstance(result, Ref)]  # the rest are constants

    def _placeholders(self) -> Iterator[tuple[Node, Any]]:
        user_inputs = iter(self._inputs)
        nodes = [node for node in self._exported.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(nodes, self._exported.graph_signature.input_specs, strict=True):
            if isinstance(spec.arg, ConstantArgument):
                yield node, spec.arg.value
            elif spec.kind is InputKind.USER_INPUT:
                yield node, self._value(next(user_inputs), Kind.INPUT, node.name)
            elif spec.kind in {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}:
                yield node, self._value(self._weight(str(spec.target)), Kind.CONSTANT, str(spec.target))
            else:
                raise LoweringError(f"input {node.name} is a {spec.kind.name.lower()}, not a tensor")

    def _weight(self, target: str) -> Tensor:
        found = self._exported.state_dict.get(target)
        weight = self._exported.constants[target] if found is None else found
        if not isinstance(weight, Tensor):
            raise LoweringError(f"constant {target} is not a tensor")
        return weight

    def _interpret(self, module: GraphModule, environment: dict[Node, Any]) -> Sequence[Any]:
        """Run a graph; a value in ``environment`` is a Ref, a tuple of them, or a plain number."""
        for node in module.graph.nodes:
            if node.op == "placeholder":
                continue
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), environment.__getitem__)
            if node.op == "output":
                return list(args[0])
            if node.op == "get_attr":
                attribute = getattr(module, str(node.target))
                environment[node] = self._value(attribute, Kind.CONSTANT, str(node.target)) if isinstance(attribute, Tensor) else attribute
            elif node.op == "call_function":
                environment[node] = self._call_function(node, args, kwargs)
            else:
                raise LoweringError(f"a {node.op} node", _source(node))
        raise LoweringError("a graph without outputs")

    def _call_function(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target = node.target
        if isinstance(target, torch._ops.OpOverload):
            return self._call_operator(node, target, args, kwargs)
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._call_inline(node, target, args)
        return target(*args, **kwargs)  # getitem on results, arithmetic on sizes

    def _call_inline(self, node: Node, target: torch._ops.HigherOrderOperator, args: tuple[Any, ...]) -> Any:
        """`with torch.no_grad()` in a forward is a subgraph; inference has no gradients, so it is just inlined."""
        if target.name() != "wrap_with_set_grad_enabled":
            raise LoweringError(f"{target.name()} cannot be taken apart into operators", _source(node))
        body, operands = args[1], args[2:]
        placeholders = [n for n in body.graph.nodes if n.op == "placeholder"]
        return self._interpret(body, dict(zip(placeholders, operands, strict=True)))

    def _call_operator(self, node: Node, target: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        packet = target.overloadpacket
        if packet in CHECKS:
            return None
        call = Call(target, args, kwargs, len(self._values))
        operands = [ref for ref in _refs((args, kwargs))]
        reads = [self._storage(self._values[ref.value]) for ref in operands]
        writes = [self._storage(self._values[ref.value]) for ref in _written(target, args, kwargs)]
        for storage in writes:
            if self._storages[storage].kind is Kind.CONSTANT and self._storages[storage].name:
                raise ModelError(f"the model writes to {self._storages[storage].name!r} while it runs (at {_source(node)})")
            self._storages[storage].mutated = True
        environment = self._values  # numbered alike
        environment.append(None)
        call.run(environment)
        result = environment[call.result]
        tensors = [t for t in (result if isinstance(result, (list, tuple)) else [result]) if isinstance(t, Tensor)]
        if not tensors and (packet in SHAPE_READS or not operands):
            return result
        if not tensors and result is not None:
            raise LoweringError(f"{target} makes a number from data: a graph is captured before the data is there", _source(node))
        created = [id_ for t in tensors if (id_ := t.untyped_storage()._cdata) not in self._storage_of]
        if created or writes or not tensors:
            traffic = sum(_bytes(self._values[ref.value]) for ref in operands) + sum(_bytes(t) for t in tensors)
            self._events.append(_Event(node, call, reads, writes, [], traffic))
        return self._name_results(call, result)

    def _name_results(self, call: Call, result: Any) -> Any:
        """Number the tensors a call returned; views of a storage become as_strided of the value that covers it."""
        if isinstance(result, (list, tuple)):
            return tuple(self._item(call, index, item) if isinstance(item, Tensor) else item for index, item in enumerate(result))
        return self._item(call, None, result) if isinstance(result, Tensor) else result

    def _item(self, call: Call, index: int | None, tensor: Tensor) -> Ref:
        known = self._storage_of.get(tensor.untyped_storage()._cdata)
        if known is not None:
            return self._view(known, call, index, tensor)
        event = self._events[-1]
        storage = len(self._storages)
        if index is None:
            value = call.result
        else:
            value = self._new_value(tensor)
            event.views.append(Call(getitem, (Ref(call.result), index), {}, value))
        self._storages.append(_Storage(Kind.ACTIVATION, tensor.untyped_storage().nbytes(), value))
        if index is not None and call.result not in self._storages[storage].views:
            self._storages[storage].views.append(call.result)  # the tuple itself keeps the storage alive
        self._storage_of[tensor.untyped_storage()._cdata] = storage
        event.creates.append(storage)
        self._creator[storage] = event
        return Ref(value)

    def _view(self, storage: int, call: Call, index: int | None, tensor: Tensor) -> Ref:
        covered = self._storages[storage]
        base = self._values[covered.value]
        layout = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
        if tensor.dtype == base.dtype and layout == (tuple(base.shape), base.stride(), base.storage_offset()):
            return Ref(covered.value)
        value = self._new_value(tensor)
        covered.views.append(value)
        if storage in self._creator:
            if tensor.dtype == base.dtype and tensor.is_conj() == base.is_conj() and tensor.is_neg() == base.is_neg():
                again = Call(torch.as_strided, (Ref(covered.value), *layout), {}, value)
            elif index is None and len(set(_refs((call.args, call.kwargs)))) == 1:
                again = Call(call.target, call.args, call.kwargs, value)
            else:
                raise LoweringError(f"{call.target} reinterprets the element type of a view")
            self._creator[storage].views.append(again)
        return Ref(value)

    def _new_value(self, tensor: Any) -> int:
        self._values.append(tensor)
        return len(self._values) - 1

    def _value(self, tensor: Tensor, kind: Kind, name: str) -> Ref:
        """A tensor that is there before the run. Weights may share a storage (tied weights), inputs never do."""
        value = self._new_value(tensor)
        key = tensor.untyped_storage()._cdata
        if key in self._storage_of:
            self._storages[self._storage_of[key]].views.append(value)
        else:
            self._storage_of[key] = len(self._storages)
            self._storages.append(_Storage(kind, tensor.untyped_storage().nbytes(), value, name=name))
        return Ref(value)

    def _storage(self, value: Any) -> int:
        return self._storage_of[value.untyped_storage()._cdata]

    def _output(self, result: Ref) -> int:
        """An output has a storage of its own making: what aliases an input or a weight, or overlaps itself, is copied."""
        tensor = self._values[result.value]
        storage = self._storages[self._storage(tensor)]
        overlaps = any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if storage.kind is Kind.ACTIVATION and not overlaps:
            return result.value
        copy = self._call_operator(self._last_node(), aten.clone.default, (result,), {"memory_format": torch.contiguous_format})
        return int(copy.value)

    def _last_node(self) -> Node:
        return next(iter(reversed(self._exported.graph.nodes)))

    def program(self) -> Program:
        """Sort the events into constants, allocations and operators, and number buffers and operators."""
        constant = self._constant_storages()
        output_storages = {self._storage(self._values[value]) for value in self._outputs}
        operators, bodies, traffic = [], [], []
        pending: dict[int, _Event] = {}  # allocations wait for the first operator that uses them
        for event in self._events:
            if all(storage in constant for storage in [*event.reads, *event.writes, *event.creates]) and event.creates:
                continue
            if event.allocation:
                pending.update(dict.fromkeys(event.creates, event))
                continue
            used = [pending.pop(s) for s in dict.fromkeys([*event.reads, *event.writes]) if s in pending]
            bodies.append(tuple(call for part in [*used, event] for call in (part.call, *part.views)))
            written = [*event.writes, *event.creates, *(s for part in used for s in part.creates)]
            reads = [s for s in event.reads if s not in event.creates]
            target = str(event.call.target)
            operators.append(Operator(event.node.name, target, tuple(dict.fromkeys(reads)), tuple(dict.fromkeys(written))))
            traffic.append(event.traffic)
        buffers = [
            Buffer(s.size, Kind.CONSTANT if i in constant and s.kind is Kind.ACTIVATION else s.kind)
            if i not in output_storages
            else Buffer(s.size, Kind.OUTPUT)
            for i, s in enumerate(self._storages)
        ]
        lasting = {i for i, buffer in enumerate(buffers) if buffer.kind in {Kind.INPUT, Kind.CONSTANT}}
        fixed = {v: self._values[v] for i in lasting for v in (self._storages[i].value, *self._storages[i].views)}
        return Program(
            "aten",
            OperatorGraph.from_accesses(operators, buffers),
            tuple(bodies),
            len(self._values),
            fixed,
            tuple((s.value, *s.views) for s in self._storages),
            self._inputs,
            tuple(self._outputs),
            tuple(traffic),
        )

    def _constant_storages(self) -> set[int]:
        """Storages whose content never changes between runs: weights, and what is computed from them alone.

        Not: what is later written in place (it must start afresh in every run), random numbers, and outputs.
        """
        constant = {i for i, s in enumerate(self._storages) if s.kind is Kind.CONSTANT}
        outputs = {self._storage(self._values[value]) for value in self._outputs}
        for event in self._events:
            random = torch.Tag.nondeterministic_seeded in event.call.target.tags  # type: ignore[attr-defined]
            if random or event.allocation or event.writes or not all(s in constant for s in event.reads):
                continue
            if not any(self._storages[s].mutated or s in outputs for s in event.creates):
                constant.update(event.creates)
        return constant


def _refs(arguments: Any) -> Iterator[Ref]:
    if isinstance(arguments, Ref):
        yield arguments
    elif isinstance(arguments, (list, tuple)):
        for item in arguments:
            yield from _refs(item)
    elif isinstance(arguments, dict):
        yield from _refs(list(arguments.values()))


def _written(target: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Ref]:
    """The arguments that the operator's schema says it writes to."""
    for position, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = kwargs.get(argument.name) if argument.kwarg_only or position >= len(args) else args[position]
            yield from _refs(given)


def _bytes(value: Any) -> int:
    """What reading or writing the tensor moves: expanded dimensions count once."""
    return min(value.numel() * value.element_size(), value.untyped_storage().nbytes()) if isinstance(value, Tensor) else 0


def _source(node: Node) -> str:
    """The model's own line that made the node: the innermost frame of its stack trace outside PyTorch."""
    frames = [line.strip() for line in node.meta.get("stack_trace", "").splitlines() if line.strip().startswith("File ")]
    own = [frame for frame in frames if "/torch/" not in frame]
    return (own or frames or ["unknown line"])[-1].removeprefix("File ")
