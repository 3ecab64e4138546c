"""What a trial run is given and what it records: storages, and the calls that make or change them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch._ops import OpOverload
from torch.fx import Node

from opara_server.engine.calls import ALLOCATIONS
from opara_server.engine.graph import Kind
from opara_server.engine.program import Call
from opara_server.engine.regions import Region


@dataclass(frozen=True, slots=True)
class Given:
    """What a placeholder stands for: an input, a weight (``name``: the model's for it), or a plain value."""

    value: Any
    kind: Kind = Kind.CONSTANT
    name: str = ""


@dataclass
class Storage:
    """One storage seen in the trial run, and the first value that covers it."""

    kind: Kind
    size: int
    value: int
    views: list[int] = field(default_factory=list)
    name: str = ""  # of the weight, to name it in errors
    steady: bool = False  # the same content in every run so far: a weight, or computed from steady ones alone


@dataclass
class Event:
    """One call of the trial run that makes or changes storages."""

    node: Node
    call: Call
    reads: list[int]
    writes: list[int]
    creates: list[int]
    touches: dict[int, set[Region]]  # of the storages that it was given: where
    traffic: int
    steady: bool = False  # what it makes is the same in every run
    views: list[Call] = field(default_factory=list)

    @property
    def allocation(self) -> bool:
        target = self.call.target
        return isinstance(target, OpOverload) and target.overloadpacket in ALLOCATIONS
