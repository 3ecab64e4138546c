"""Graph module → program, by one run on real tensors of the bucket's shape.

It decides what is what, exactly and for every operator alike: a call whose results live in storages that existed before
is a view; one that depends on weights alone is computed once, now; an allocation makes an explicit buffer, which is
there when a run begins; everything else that makes or changes a storage is an operator, and the parts of storages that
it touches give its edges.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.fx import GraphModule

from opara_server.engine.calls import source_line
from opara_server.engine.errors import LoweringError
from opara_server.engine.graph import Buffer, Kind, Operator, OperatorGraph
from opara_server.engine.program import Call, Placed, Program
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
    explicit = {storage: event for event in trial.events if event.allocation for storage in event.creates}
    operators: list[Operator] = []
    bodies: list[tuple[Call, ...]] = []
    traffic: list[int] = []
    touches: list[dict[int, frozenset[Region]]] = []
    for event in trial.events:
        if event.allocation or (event.creates and constant.issuperset(event.creates)):
            continue
        bodies.append((event.call, *event.views))
        writes = _distinct([*event.writes, *event.creates])
        operators.append(Operator(event.node.name, str(event.call.target), _distinct(event.reads), writes))
        traffic.append(event.traffic)
        touches.append(
            {
                s: frozenset(regions)
                for s, regions in event.touches.items()
                if not any(r.nbytes == trial.storages[s].size for r in regions)
            }
        )
    kinds = {**dict.fromkeys(explicit, Kind.ARENA), **dict.fromkeys(constant, Kind.CONSTANT)}
    kinds |= dict.fromkeys(outputs, Kind.OUTPUT)
    buffers = [Buffer(storage.size, kinds.get(i, storage.kind)) for i, storage in enumerate(trial.storages)]
    used = {buffer for operator in operators for buffer in (*operator.reads, *operator.writes)}
    lasting = [
        s for s, buffer in zip(trial.storages, buffers, strict=True) if buffer.kind in {Kind.INPUT, Kind.CONSTANT}
    ]
    return Program(
        lowering=lowering,
        graph=OperatorGraph.from_accesses(operators, buffers, Touches(touches)),
        bodies=tuple(bodies),
        value_count=len(trial.values),
        fixed={v: trial.values[v] for s in lasting for v in (s.value, *s.views) if isinstance(trial.values[v], Tensor)},
        buffer_values=tuple(_distinct((s.value, *s.views)) for s in trial.storages),
        inputs=trial.inputs,
        outputs=tuple(trial.outputs),
        traffic=tuple(traffic),
        arena=tuple(_placed(trial, s, event) for s, event in explicit.items() if s in used - outputs),
        allocations=tuple(c for s, event in explicit.items() if s in outputs for c in (event.call, *event.views)),
    )


def _placed(trial: Trial, storage: int, allocation: Event) -> Placed:
    tensor = trial.values[allocation.call.result]
    if tensor.device != trial.inputs[0].device:
        raise LoweringError(f"memory on {tensor.device}, not on the inputs' device", source_line(allocation.node))
    views = tuple(allocation.views)
    return Placed(storage, allocation.call.result, tensor.dtype, tuple(tensor.shape), tensor.stride(), views)


def _trial(module: GraphModule, given: Sequence[Given]) -> Trial:
    """With copies of the inputs that the module writes to: every run starts from what was copied in."""
    copied: set[int] = set()
    while True:
        try:
            return Trial(module, given, copied)
        except InputWrittenError as error:
            copied.add(error.number)


def _distinct(numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(numbers))
