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
from opara_server.engine.program import Call, Placed, Program, Ref

PRIME = 1_000_003
LONGEST_DELAY_S = 0.3e-3


def pause() -> None:
    time.sleep(random.random() * LONGEST_DELAY_S)


def mix(seed: int, operands: Sequence[Tensor]) -> Tensor:
    mixed = torch.tensor(seed)
    for position, operand in enumerate(operands):
        mixed = (mixed + (position + 2) * operand) % PRIME
    return mixed


class Mix:
    """Combines integers so that every order but the right one gives other numbers; sleeps before and in between.

    ``results`` new tensors; none: the first operand is changed in place.
    """

    def __init__(self, seed: int, results: int) -> None:
        self.seed = seed
        self.results = results

    def __call__(self, *operands: Tensor) -> Any:
        pause()
        mixed = mix(self.seed, operands).expand(4)
        if self.results:
            made = [(mixed * (7 + i)) % PRIME for i in range(self.results)]
            return made[0] if self.results == 1 else tuple(made)
        operands[0].mul_(3)
        pause()  # whoever reads now reads a half-made value
        return operands[0].add_(mixed).remainder_(PRIME)


class MixInto:
    """Writes into the tensors that it is given; as a kernel would, some of it while it has yet to read the rest."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, targets: Sequence[Tensor], *operands: Tensor) -> None:
        for written, read in ((slice(2), slice(2, 4)), (slice(2, 4), slice(2))):
            pause()
            mixed = mix(self.seed, [operand[read] for operand in operands])
            for number, target in enumerate(targets):
                target[written] = (mixed * (7 + number)) % PRIME


def mixing_program(graph: OperatorGraph) -> Program:
    """Operators for a graph of buffers: an in-place operator is one that writes what it reads. ARENA buffers, of 32
    bytes, are given to their first writer, which makes no others."""
    count = len(graph.buffers)  # value b is buffer b; results that are no buffer's follow
    made: set[int] = set()
    bodies: list[tuple[Call, ...]] = []
    kinds = [buffer.kind for buffer in graph.buffers]
    for index, operator in enumerate(graph.operators):
        new = [buffer for buffer in operator.writes if buffer not in operator.reads]
        args = tuple(Ref(buffer) for buffer in operator.reads)
        made.update(new)
        if new and kinds[new[0]] is Kind.ARENA:
            bodies.append((Call(MixInto(index), (tuple(map(Ref, new)), *args), {}, count),))
            count += 1
            continue
        result = new[0] if len(new) == 1 else count
        takes = [Call(getitem, (Ref(count), i), {}, buffer) for i, buffer in enumerate(new)] if len(new) > 1 else []
        bodies.append((Call(Mix(index, len(new)), args, {}, result), *takes))
        count += len(new) != 1
    fixed = {b: torch.full((4,), 11 * b + 5) for b in range(len(graph.buffers)) if b not in made}
    outputs = tuple(b for b, kind in enumerate(kinds) if kind is Kind.OUTPUT and b in made)
    inputs = tuple(tensor for b, tensor in fixed.items() if kinds[b] is Kind.INPUT)
    arena = tuple(Placed(b, b, torch.int64, (4,), (1,)) for b, kind in enumerate(kinds) if kind is Kind.ARENA)
    return _program(graph, bodies, count, fixed, inputs, outputs, arena)


def partly_explicit(graph: OperatorGraph, seed: int, share: float) -> OperatorGraph:
    """The same, where a share of the operators that make activations alone are given them to write into."""
    chance = random.Random(seed)
    buffers = list(graph.buffers)
    for operator in graph.operators:
        new = [buffer for buffer in operator.writes if buffer not in operator.reads]
        if all(buffers[b].kind is Kind.ACTIVATION for b in new) and chance.random() < share:
            buffers = [Buffer(32, Kind.ARENA) if b in new else buffer for b, buffer in enumerate(buffers)]
    return replace(graph, buffers=tuple(buffers))


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
    arena: tuple[Placed, ...] = (),
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
        arena=arena,
    )
