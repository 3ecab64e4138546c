"""The `whole` lowering, for modules whose operators cannot be had: one operator, the module itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import getitem

from torch import Tensor, contiguous_format

from opara_server.engine.graph import Buffer, Kind, Operator, OperatorGraph
from opara_server.engine.program import Call, Program, Ref
from opara_server.engine.tensors import overlaps_itself, same_values


def lower_whole(
    function: Callable[..., tuple[Tensor, ...]], weights: Sequence[Tensor], inputs: Sequence[Tensor]
) -> Program:
    """One operator that calls ``function(*inputs)``, with copies of those it writes to. Outputs that alias an input or
    one of ``weights``, or overlap themselves, are copied."""
    before = [tensor.clone() for tensor in inputs]
    function(*inputs)
    written = [not same_values(now, then) for now, then in zip(inputs, before, strict=True)]
    for tensor, value in zip(inputs, before, strict=True):
        tensor.copy_(value)
    foreign = {tensor.untyped_storage()._cdata for tensor in (*weights, *inputs)}

    def forward(*arguments: Tensor) -> tuple[Tensor, ...]:
        results = function(*(a.clone() if own else a for a, own in zip(arguments, written, strict=True)))
        return tuple(
            r.clone(memory_format=contiguous_format)
            if r.untyped_storage()._cdata in foreign or overlaps_itself(r)
            else r
            for r in results
        )

    results = forward(*inputs)
    count = len(inputs)
    whole = count + len(results)  # the value that holds the tuple of results
    takes = [Call(getitem, (Ref(whole), i), {}, count + i) for i in range(len(results))]
    buffers = [Buffer(t.untyped_storage().nbytes(), Kind.INPUT) for t in inputs]
    buffers += [Buffer(t.untyped_storage().nbytes(), Kind.OUTPUT) for t in results]
    operator = Operator("forward", "module", tuple(range(count)), tuple(range(count, whole)))
    return Program(
        "whole",
        OperatorGraph.from_accesses([operator], buffers),
        ((Call(forward, tuple(Ref(i) for i in range(count)), {}, whole), *takes),),
        whole + 1,
        dict(enumerate(inputs)),
        tuple((i,) for i in range(whole)),
        tuple(inputs),
        tuple(range(count, whole)),
        (sum(t.numel() * t.element_size() for t in (*weights, *inputs, *results)),),
    )
