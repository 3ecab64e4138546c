"""One run of a graph module on real tensors, which finds out what each call reads, writes, makes or only views."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import GraphModule, Node

from opara_server.engine.calls import (
    ALLOCATIONS,
    CHECKS,
    DETACHES,
    SHAPE_READS,
    VIEWS_IN_PLACE,
    Kernel,
    Target,
    bytes_moved,
    read,
    refs,
    refusal,
    source_line,
    without_idle_mask,
    written,
)
from opara_server.engine.errors import LoweringError, ModelError, first_line
from opara_server.engine.graph import Kind
from opara_server.engine.program import Call, Ref
from opara_server.engine.regions import Region, region
from opara_server.engine.tensors import layout_name, overlaps_itself
from opara_server.engine.trial_record import Event, Given, Storage


class InputWrittenError(Exception):
    """The module writes to its input ``number``: runs would not start from the same values."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the module writes to input {number}")
        self.number = number


class Trial:
    """The run on real tensors, and what it found out. Values and storages are numbered as they appear."""

    def __init__(self, module: GraphModule, given: Sequence[Given], copied: Collection[int]) -> None:
        """Runs at once. ``given``: per placeholder. ``copied``: numbers of inputs that the module gets a copy of.

        Raises InputWrittenError where the module is about to write to one that is not, LoweringError, and ModelError
        where it writes to its own weights.
        """
        self.inputs: tuple[Tensor, ...] = tuple(g.value for g in given if g.kind is Kind.INPUT)
        self.values: list[Any] = []
        self.storages: list[Storage] = []
        self.events: list[Event] = []
        self._copied = copied
        self._input_of: dict[int, int] = {}  # by storage
        self._storage_of: dict[int, int] = {}  # address of the StorageImpl → index; all storages stay alive meanwhile
        self._creator: dict[int, Event] = {}  # by storage
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        environment = {node: self._given(node, g) for node, g in zip(placeholders, given, strict=True)}
        results = self._interpret(module, environment)
        last = next(iter(reversed(module.graph.nodes)))
        # What is no tensor is the same in every run.
        self.outputs = [self._output(last, result) for result in results if isinstance(result, Ref)]

    def storage(self, value: int) -> int:
        """The storage that a value lies in."""
        return self._storage_of[self.values[value].untyped_storage()._cdata]

    def _given(self, node: Node, given: Given) -> Any:
        if not isinstance(given.value, Tensor):
            return given.value
        value = self._value(given.value, given.kind, given.name)
        if given.kind is not Kind.INPUT:
            return value
        number = self._input_of[self.storage(value.value)] = len(self._input_of)
        clone = torch.ops.aten.clone.default
        return self._call_operator(node, clone, (value,), {}) if number in self._copied else value

    def _interpret(self, module: GraphModule, environment: dict[Node, Any]) -> Sequence[Any]:
        """Run a graph; a value in ``environment`` is a Ref, a tuple of them, or a plain number."""
        for node in module.graph.nodes:
            if node.op == "placeholder":
                continue
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), environment.__getitem__)
            if node.op == "output":
                return list(args[0]) if isinstance(args[0], (list, tuple)) else [args[0]]
            if node.op == "get_attr":
                attribute = getattr(module, str(node.target))
                known = isinstance(attribute, Tensor)
                environment[node] = self._value(attribute, Kind.CONSTANT, str(node.target)) if known else attribute
            elif node.op == "call_function":
                environment[node] = self._call_function(node, args, kwargs)
            else:
                raise LoweringError(f"a {node.op} node", source_line(node))
        raise LoweringError("a graph without outputs")

    def _call_function(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target = node.target
        if isinstance(target, (OpOverload, Kernel)):
            return self._call_operator(node, target, args, kwargs)
        if isinstance(target, HigherOrderOperator):
            return self._call_inline(node, target, args)
        assert callable(target)
        return target(*args, **kwargs)  # getitem on results, arithmetic on sizes

    def _call_inline(self, node: Node, target: HigherOrderOperator, args: tuple[Any, ...]) -> Any:
        """`with torch.no_grad()` in a forward is a subgraph; inference has no gradients, so it is just inlined.

        So is `with torch.autocast(..., enabled=False)`: nobody enables it around a program.
        """
        if str(target) == "wrap_with_set_grad_enabled":
            body, operands = args[1], args[2:]
        elif str(target) == "wrap_with_autocast" and not args[2]:
            body, operands = args[4], args[5:]
        else:
            raise LoweringError(f"{target} cannot be taken apart into operators", source_line(node))
        placeholders = [n for n in body.graph.nodes if n.op == "placeholder"]
        return self._interpret(body, dict(zip(placeholders, operands, strict=True)))

    def _call_operator(self, node: Node, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        packet = target.overloadpacket if isinstance(target, OpOverload) else None
        if packet in CHECKS:
            return None
        if packet in DETACHES:
            return args[0]
        if isinstance(target, OpOverload) and (reason := refusal(target, node)):
            raise LoweringError(reason, source_line(node))
        writes = [self._write(ref.value, node) for ref in written(target, args, kwargs)]
        if target in VIEWS_IN_PLACE:
            target, writes = VIEWS_IN_PLACE[target], []
        call = without_idle_mask(Call(target, args, kwargs, self._new_value(None)), self._steady_content)
        operands = [ref.value for ref in read(target, call.args, call.kwargs)]
        try:
            call.run(self.values)  # they are numbered as in an environment
        except Exception as error:
            raise LoweringError(f"{target} fails: {first_line(error)}", source_line(node)) from error
        result = self.values[call.result]
        if packet in ALLOCATIONS:  # by its layout alone: it may be made when its template is no more
            layout = (tuple(result.shape), result.stride())
            kind = {"dtype": result.dtype, "device": result.device}
            call, operands = Call(torch.ops.aten.empty_strided.default, layout, kind, call.result), []
        tensors = [t for t in (result if isinstance(result, (list, tuple)) else [result]) if isinstance(t, Tensor)]
        if (odd := next((t for t in tensors if t.layout != torch.strided), None)) is not None:
            raise LoweringError(f"{target} makes a {layout_name(odd)} tensor", source_line(node))
        if not (tensors or writes) and (packet in SHAPE_READS or not operands):
            return result
        if not tensors and result is not None:
            raise LoweringError(f"{target} makes a number of data", source_line(node))
        if writes or not tensors or any(t.untyped_storage()._cdata not in self._storage_of for t in tensors):
            self._record(node, call, operands, writes, tensors)
        for ref in written(target, args, kwargs):
            if result is self.values[ref.value]:  # an in-place operator returns what it was given
                self.storages[self.storage(ref.value)].views.append(call.result)
                return ref
        return self._name_results(call, result)

    def _record(
        self, node: Node, call: Call, operands: Sequence[int], writes: list[int], results: Sequence[Tensor]
    ) -> None:
        reads = [self.storage(value) for value in operands]
        given = {ref.value for ref in refs((call.args, call.kwargs))}
        touches: dict[int, set[Region]] = {}
        for value in given:
            if self.values[value].numel():
                touches.setdefault(self.storage(value), set()).add(region(self.values[value]))
        traffic = sum(bytes_moved(t) for t in [*(self.values[value] for value in given), *results])
        target = call.target
        random = isinstance(target, OpOverload) and torch.Tag.nondeterministic_seeded in target.tags
        event = Event(node, call, reads, writes, [], touches, traffic)
        event.steady = not (random or writes or event.allocation) and all(self.storages[s].steady for s in reads)
        self.events.append(event)

    def _steady_content(self, ref: Ref) -> Tensor | None:
        value: Tensor = self.values[ref.value]
        return value if self.storages[self.storage(ref.value)].steady else None

    def _write(self, value: int, node: Node) -> int:
        storage = self.storage(value)
        name = self.storages[storage].name
        if name and self.storages[storage].kind is Kind.CONSTANT:
            raise ModelError(f"the model writes to {name!r} while it runs (at {source_line(node)})")
        if storage in self._input_of:
            raise InputWrittenError(self._input_of[storage])
        self.storages[storage].steady = False
        return storage

    def _name_results(self, call: Call, result: Any) -> Any:
        """Number the tensors a call returned; views of a storage become as_strided of the value that covers it."""
        if isinstance(result, (list, tuple)):
            return tuple(
                self._item(call, index, item) if isinstance(item, Tensor) else item for index, item in enumerate(result)
            )
        return self._item(call, None, result) if isinstance(result, Tensor) else result

    def _item(self, call: Call, index: int | None, tensor: Tensor) -> Ref:
        known = self._storage_of.get(tensor.untyped_storage()._cdata)
        if known is not None:
            return self._view(known, call, index, tensor)
        event = self.events[-1]
        storage = len(self.storages)
        if index is None:
            value = call.result
        else:
            value = self._new_value(tensor)
            event.views.append(Call(getitem, (Ref(call.result), index), {}, value))
        self.storages.append(Storage(Kind.ACTIVATION, tensor.untyped_storage().nbytes(), value, steady=event.steady))
        if index is not None:
            self.storages[storage].views.append(call.result)  # the tuple of results keeps the storage alive, too
        self._storage_of[tensor.untyped_storage()._cdata] = storage
        event.creates.append(storage)
        self._creator[storage] = event
        return Ref(value)

    def _view(self, storage: int, call: Call, index: int | None, tensor: Tensor) -> Ref:
        covered = self.storages[storage]
        covered.views.append(call.result)  # what was returned keeps the storage alive, too
        assert isinstance(call.target, OpOverload)
        writes = call.target._schema.is_mutable
        base = self.values[covered.value]
        layout = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
        if _same_elements(tensor, base) and layout == (tuple(base.shape), base.stride(), base.storage_offset()):
            return Ref(covered.value)
        value = self._new_value(tensor)
        covered.views.append(value)
        if storage in self._creator:
            given = [ref.value for ref in refs((call.args, call.kwargs))]
            bases = [v for v in (covered.value, *given) if self.storage(v) == storage]
            like = next((v for v in bases if _same_elements(tensor, self.values[v])), None)
            if like is not None:
                again = Call(torch.as_strided, (Ref(like), *layout), {}, value)
            elif index is None and not writes and len(set(refs((call.args, call.kwargs)))) == 1:
                again = Call(call.target, call.args, call.kwargs, value)
            else:
                raise LoweringError(f"{call.target} reinterprets the element type of a view")
            self._creator[storage].views.append(again)
        return Ref(value)

    def _new_value(self, tensor: Any) -> int:
        self.values.append(tensor)
        return len(self.values) - 1

    def _value(self, tensor: Tensor, kind: Kind, name: str) -> Ref:
        """A tensor that is there before the run. Weights may share a storage (tied weights), inputs never do."""
        value = self._new_value(tensor)
        key = tensor.untyped_storage()._cdata
        if key in self._storage_of:
            self.storages[self._storage_of[key]].views.append(value)
        else:
            self._storage_of[key] = len(self.storages)
            size, steady = tensor.untyped_storage().nbytes(), kind is Kind.CONSTANT
            self.storages.append(Storage(kind, size, value, name=name, steady=steady))
        return Ref(value)

    def _output(self, last: Node, result: Ref) -> int:
        """An output has a storage of its own: what aliases an input or a weight, or overlaps itself, is copied; so is
        what is the conjugate or the negative of its memory, which a copy to the host would apply before it lands."""
        tensor = self.values[result.value]
        storage = self.storages[self.storage(result.value)]
        if storage.kind is Kind.ACTIVATION and not (overlaps_itself(tensor) or tensor.is_conj() or tensor.is_neg()):
            return result.value
        contiguous = {"memory_format": torch.contiguous_format}
        copy: Ref = self._call_operator(last, torch.ops.aten.clone.default, (result,), contiguous)
        return copy.value


def _same_elements(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.is_conj() == other.is_conj() and one.is_neg() == other.is_neg()
