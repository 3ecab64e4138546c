"""A program: an operator graph and how to run each of its operators on tensors.

Values (tensors) are numbered; an environment is a list of them, filled while the operators of one run are executed.
Inputs, weights and everything computed from weights alone are there from the start; so are explicit buffers, which
operators do not make but are given to write into.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.utils.dlpack import from_dlpack

from opara_server.engine.arena import Arena
from opara_server.engine.graph import OperatorGraph
from opara_server.engine.memory import plan_arena
from opara_server.engine.schedule import Schedule, Step

Environment = list[Any]  # a tensor, or what an operator with several results returned; None once released


@dataclass(frozen=True, slots=True)
class Ref:
    """In a call's arguments: the value with this number."""

    value: int


@dataclass(frozen=True, slots=True)
class Call:
    """``environment[result] = target(*args, **kwargs)`` with each Ref replaced by its value."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: int

    def run(self, environment: Environment) -> None:
        args, kwargs = self.given(environment)
        environment[self.result] = self.target(*args, **kwargs)

    def given(self, environment: Environment) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the target gets in this run: its positional arguments, and those by name."""
        kwargs = {name: _resolve(value, environment) for name, value in self.kwargs.items()}
        return _resolve(self.args, environment), kwargs


def bound(call: Call) -> Callable[[Environment], None]:
    """As ``call.run``, with all decided that is the same in every run: a third of the time for a small operator."""
    target, result, kwargs = call.target, call.result, dict(call.kwargs)
    values = [(position, given.value) for position, given in enumerate(call.args) if isinstance(given, Ref)]
    nested = [given for given in call.args if not isinstance(given, Ref)]
    if any(map(_refers, (*nested, *kwargs.values()))):
        return call.run

    def run(environment: Environment) -> None:
        args = list(call.args)
        for position, value in values:
            args[position] = environment[value]
        environment[result] = target(*args, **kwargs)

    return run


def _refers(argument: Any) -> bool:
    if isinstance(argument, (list, tuple)):
        return any(map(_refers, argument))
    return isinstance(argument, Ref)


def _resolve(argument: Any, environment: Environment) -> Any:
    if isinstance(argument, Ref):
        return environment[argument.value]
    if isinstance(argument, (list, tuple)):
        return type(argument)(_resolve(item, environment) for item in argument)
    return argument


@dataclass(frozen=True, slots=True)
class Placed:
    """An ARENA buffer: its memory is a part of a block. ``value`` covers it, ``views`` are the calls that view it."""

    buffer: int
    value: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    views: tuple[Call, ...] = ()

    def tensor(self, memory: torch.Tensor) -> torch.Tensor:
        """In ``memory``, a uint8 vector of the buffer's size; with a storage of its own, as an allocator would give it:
        the offsets of its views, which count from the beginning of their storage, are as they were recorded."""
        return from_dlpack(memory).view(self.dtype).as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class Program:
    """One bucket's operators, bound to its static input tensors.

    ``bodies``: per operator its call and the views of its results. ``fixed``: the values that outlive a run.
    ``buffer_values``: per buffer the values that keep its storage alive. ``traffic``: per operator the bytes of the
    tensors it reads and writes. ``lowering``: how the operators were had. Replays read ``inputs`` and the fixed values
    at their addresses: the program outlives every graph captured from it. ``arena``: its ARENA buffers that have users.
    ``allocations``: the calls that begin every run: its explicit buffers of kind OUTPUT, and their views.
    """

    lowering: str
    graph: OperatorGraph
    bodies: tuple[tuple[Call, ...], ...]
    value_count: int
    fixed: Mapping[int, Any]
    buffer_values: tuple[tuple[int, ...], ...]
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[int, ...]
    traffic: tuple[int, ...]
    arena: tuple[Placed, ...] = ()
    allocations: tuple[Call, ...] = ()

    def prepare(self, arena: Arena, block: torch.Tensor) -> Environment:
        """What every run of a schedule begins with: the fixed values, and the ARENA buffers in ``block`` (uint8, at
        least ``arena.size`` long), which lives as long as they do."""
        environment: Environment = [None] * self.value_count
        for value, tensor in self.fixed.items():
            environment[value] = tensor
        for placed in self.arena:
            begin = arena.offsets[placed.buffer]
            environment[placed.value] = placed.tensor(block[begin : begin + self.graph.buffers[placed.buffer].size])
            for view in placed.views:
                view.run(environment)
        return environment

    def new_environment(self, prepared: Environment | None = None) -> Environment:
        """For one run: of the schedule whose arena was ``prepared``, else one in program order on one stream."""
        if prepared is None:
            block = torch.empty(self._arena_in_order.size, dtype=torch.uint8, device=self.inputs[0].device)
            prepared = self.prepare(self._arena_in_order, block)
        environment = list(prepared)
        for allocation in self.allocations:
            allocation.run(environment)
        return environment

    @cached_property
    def _arena_in_order(self) -> Arena:
        steps = tuple(Step(operator, stream=0) for operator in range(len(self.graph)))
        return plan_arena(self.graph, Schedule("in order", steps))

    def run(self, operator: int, environment: Environment) -> None:
        """Execute one operator on the current stream; its predecessors' values must be in the environment."""
        for call in self.bodies[operator]:
            call.run(environment)

    def release(self, buffer: int, environment: Environment) -> None:
        """Drop every reference to a buffer: its memory goes back to the allocator."""
        for value in self.buffer_values[buffer]:
            environment[value] = None

    def results(self, environment: Environment) -> tuple[torch.Tensor, ...]:
        return tuple(environment[value] for value in self.outputs)

    def run_in_order(self) -> tuple[torch.Tensor, ...]:
        """One run without a schedule, in program order, on the current stream; returns the outputs."""
        environment = self.new_environment()
        for operator in range(len(self.graph)):
            self.run(operator, environment)
        return self.results(environment)
