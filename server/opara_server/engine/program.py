"""A program: an operator graph and how to run each of its operators on tensors.

Values (tensors) are numbered; an environment is a list of them, filled while the operators of one run are executed.
Inputs, weights and everything computed from weights alone are there from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from opara_server.engine.graph import OperatorGraph

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
        args = _resolve(self.args, environment)
        kwargs = {name: _resolve(value, environment) for name, value in self.kwargs.items()}
        environment[self.result] = self.target(*args, **kwargs)


def _resolve(argument: Any, environment: Environment) -> Any:
    if isinstance(argument, Ref):
        return environment[argument.value]
    if isinstance(argument, (list, tuple)):
        return type(argument)(_resolve(item, environment) for item in argument)
    return argument


@dataclass(frozen=True)
class Program:
    """One bucket's operators, bound to its static input tensors.

    ``bodies``: per operator its call and the views of its results. ``fixed``: the values that outlive a run.
    ``buffer_values``: per buffer the values that keep its storage alive. ``traffic``: per operator the bytes of the
    tensors it reads and writes. ``lowering``: how the operators were had. Replays read ``inputs`` and the fixed values
    at their addresses: the program outlives every graph captured from it.
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

    def new_environment(self) -> Environment:
        environment: Environment = [None] * self.value_count
        for value, tensor in self.fixed.items():
            environment[value] = tensor
        return environment

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
