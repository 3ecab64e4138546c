"""Graph module → program, by one run on real tensors of the bucket's shape.

It decides what is what, exactly and for every operator alike: a call whose results live in storages that existed before
is a view; one that depends on weights alone is computed once, now; everything else that makes or changes a storage is
an operator, and the parts of storages that it touches give its edges.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import GraphModule

from opara_server.engine.graph import Buffer, Kind, Operator, OperatorGraph
from opara_server.engine.program import Call, Program
from opara_server.engine.regions import Region, Touches
from opara_server.engine.trial import InputWrittenError, Trial
from opara_server.engine.trial_record import Event, Given


def program_of(module: GraphModule, given: Sequence[Given], lowering: str) -> Program:
    """The program of ``module`` for exactly the tensors it is given (shapes, strides, addresses).

    Raises LoweringError for what cannot be taken apart into operators (data-dependent values, control flow), ModelError
    where the module writes to its own weights.
    """
    trial = _trial(module, given)
    outputs = {trial.storage(value) for value in trial.outputs}
    constant = {i for i, storage in enumerate(trial.storages) if storage.steady} - outputs
    operators: list[Operator] = []
    bodies: list[tuple[Call, ...]] = []
    traffic: list[int] = []
    touches: list[dict[int, frozenset[Region]]] = []
    for event, allocations in _operators(trial, constant, outputs):
        prepared = [call for allocation in allocations for call in (allocation.call, *allocation.views)]
        bodies.append((*prepared, event.call, *event.views))
        made = [*event.creates, *(s for allocation in allocations for s in allocation.creates)]
        target = str(event.call.target)
        operators.append(Operator(event.node.name, target, _distinct(event.reads), _distinct([*event.writes, *made])))
        traffic.append(event.traffic)
        touches.append(
            {
                s: frozenset(regions)
                for s, regions in event.touches.items()
                if s not in made and not any(r.nbytes == trial.storages[s].size for r in regions)
            }
        )
    buffers = _buffers(trial, constant, outputs)
    lasting = [
        s for s, buffer in zip(trial.storages, buffers, strict=True) if buffer.kind in {Kind.INPUT, Kind.CONSTANT}
    ]
    return Program(
        lowering=lowering,
        graph=OperatorGraph.from_accesses(operators, buffers, Touches(touches)),
        bodies=tuple(bodies),
        value_count=len(trial.values),
        fixed={value: trial.values[value] for s in lasting for value in (s.value, *s.views)},
        buffer_values=tuple(_distinct((s.value, *s.views)) for s in trial.storages),
        inputs=trial.inputs,
        outputs=tuple(trial.outputs),
        traffic=tuple(traffic),
    )


def _trial(module: GraphModule, given: Sequence[Given]) -> Trial:
    """With copies of the inputs that the module writes to: every run starts from what was copied in."""
    copied: set[int] = set()
    while True:
        try:
            return Trial(module, given, copied)
        except InputWrittenError as error:
            copied.add(error.number)


def _operators(trial: Trial, constant: set[int], outputs: set[int]) -> list[tuple[Event, list[Event]]]:
    """The calls to schedule, each with the allocations that it is the first to use. An output that is allocated and
    never written is a call of its own."""
    found: list[tuple[Event, list[Event]]] = []
    pending: dict[int, Event] = {}
    for event in trial.events:
        if event.creates and constant.issuperset(event.creates):
            continue
        if event.allocation:
            pending.update(dict.fromkeys(event.creates, event))
        else:
            found.append((event, [pending.pop(s) for s in _distinct([*event.reads, *event.writes]) if s in pending]))
    return found + [(event, []) for s, event in pending.items() if s in outputs]


def _buffers(trial: Trial, constant: set[int], outputs: set[int]) -> list[Buffer]:
    return [
        Buffer(s.size, Kind.OUTPUT if i in outputs else Kind.CONSTANT if i in constant else s.kind)
        for i, s in enumerate(trial.storages)
    ]


def _distinct(numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(numbers))
