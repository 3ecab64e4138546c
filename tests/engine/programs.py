"""Programs made by hand: operators whose results are right, whatever the timing, only if their order is."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import getitem
from typing import Any

import torch
from torch import Tensor

from opara_server.engine.graph import Buffer, Kind, Operator, OperatorGraph
from opara_server.engine.program import Call, Program, Ref

PRIME = 1_000_003
LONGEST_DELAY_S = 0.3e-3


def pause() -> None:
    time.sleep(random.random() * LONGEST_DELAY_S)


class Mix:
    """Combines integers so that every order but the right one gives other numbers; sleeps before and in between.

    ``results`` new tensors; none: the first operand is changed in place.
    """

    def __init__(self, seed: int, results: int) -> None:
        self.seed = seed
        self.results = results

    def __call__(self, *operands: Tensor) -> Any:
        pause()
        mixed = torch.full((4,), self.seed)
        for position, operand in enumerate(operands):
            mixed = (mixed + (position + 2) * operand) % PRIME
        if self.results:
            made = [(mixed * (7 + i)) % PRIME for i in range(self.results)]
            return made[0] if self.results == 1 else tuple(made)
        operands[0].mul_(3)
        pause()  # whoever reads now reads a half-made value
        return operands[0].add_(mixed).remainder_(PRIME)


def mixing_program(graph: OperatorGraph) -> Program:
    """Operators for a graph of buffers: an in-place operator is one that writes what it reads."""
    count = len(graph.buffers)  # value b is buffer b; results that are no buffer's follow
    made: set[int] = set()
    bodies: list[tuple[Call, ...]] = []
    for index, operator in enumerate(graph.operators):
        new = [buffer for buffer in operator.writes if buffer not in operator.reads]
        args = tuple(Ref(buffer) for buffer in operator.reads)
        result = new[0] if len(new) == 1 else count
        takes = [Call(getitem, (Ref(count), i), {}, buffer) for i, buffer in enumerate(new)] if len(new) > 1 else []
        bodies.append((Call(Mix(index, len(new)), args, {}, result), *takes))
        count += len(new) != 1
        made.update(new)
    fixed = {b: torch.full((4,), 11 * b + 5) for b in range(len(graph.buffers)) if b not in made}
    kinds = [buffer.kind for buffer in graph.buffers]
    outputs = tuple(b for b, kind in enumerate(kinds) if kind is Kind.OUTPUT and b in made)
    inputs = tuple(tensor for b, tensor in fixed.items() if kinds[b] is Kind.INPUT)
    return _program(graph, bodies, count, fixed, inputs, outputs)


def observable(graph: OperatorGraph) -> OperatorGraph:
    """The same with an output wherever nobody reads a buffer: every operator can be seen from outside."""
    read = {buffer for operator in graph.operators for buffer in operator.reads}
    buffers = [
        replace(buffer, kind=Kind.OUTPUT) if buffer.kind is Kind.ACTIVATION and b not in read else buffer
        for b, buffer in enumerate(graph.buffers)
    ]
    return OperatorGraph.from_accesses(graph.operators, buffers)


def program_of(*operators: tuple[Callable[..., Any], Sequence[int]], outputs: Sequence[int] = ()) -> Program:
    """Value 0 is the input; operator i calls a function on earlier values and makes value i + 1. ``outputs``: values,
    by default the last one."""
    ends = tuple(outputs) or (len(operators),)
    buffers = [Buffer(8, Kind.INPUT)]
    buffers += [Buffer(1024, Kind.OUTPUT if i + 1 in ends else Kind.ACTIVATION) for i in range(len(operators))]
    graph = OperatorGraph.from_accesses(
        [Operator(f"op{i}", "test", tuple(values), (i + 1,)) for i, (_, values) in enumerate(operators)], buffers
    )
    bodies = [(Call(f, tuple(map(Ref, values)), {}, i + 1),) for i, (f, values) in enumerate(operators)]
    given = torch.ones(2, 4)
    return _program(graph, bodies, len(buffers), {0: given}, (given,), ends)


def _program(
    graph: OperatorGraph,
    bodies: Sequence[tuple[Call, ...]],
    values: int,
    fixed: dict[int, Tensor],
    inputs: tuple[Tensor, ...],
    outputs: tuple[int, ...],
) -> Program:
    return Program(
        lowering="aten",
        graph=graph,
        bodies=tuple(bodies),
        value_count=values,
        fixed=fixed,
        buffer_values=tuple((b,) for b in range(len(graph.buffers))),
        inputs=inputs,
        outputs=outputs,
        traffic=(64,) * len(graph),
    )
