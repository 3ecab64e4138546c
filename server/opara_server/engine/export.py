"""Module → exported program: once with a dynamic batch where the model allows it, else once per bucket."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from inspect import Parameter, signature

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import ConstantArgument

from opara_server.engine.errors import LoweringError, first_line, model_line

log = logging.getLogger(__name__)


def export_dynamic(module: nn.Module, inputs: Sequence[Tensor]) -> ExportedProgram | None:
    """One program for every batch size from 2 to that of ``inputs``; None where the model fixes its batch size.

    Not for 1: torch.export takes a dynamic size to differ from 1 and would settle `if len(x) == 1` without a word.
    """
    rows = inputs[0].shape[0]
    if rows < 3:
        return None
    batch = Dim("batch", min=2, max=rows)
    try:
        with torch.no_grad():
            return _without_strings(export(module, tuple(inputs), dynamic_shapes=_batch_first(module, inputs, batch)))
    except Exception as error:  # noqa: BLE001 - torch.export raises whatever the traced model or its tracer raises
        log.info("no export with a dynamic batch (%s); one per batch size instead", first_line(error))
        return None


def _batch_first(module: nn.Module, inputs: Sequence[Tensor], batch: Dim) -> tuple[object, ...]:
    """Dynamic shapes in the form that fits ``forward(*args)`` as well as ``forward(x, y)``."""
    per_input = tuple({0: batch} for _ in inputs)
    variadic = any(p.kind is Parameter.VAR_POSITIONAL for p in signature(module.forward).parameters.values())
    return (per_input,) if variadic else per_input


def export_static(module: nn.Module, inputs: Sequence[Tensor]) -> ExportedProgram:
    """A program for exactly these shapes. Raises LoweringError with the reason and the model's line."""
    try:
        with torch.no_grad():
            return _without_strings(export(module, tuple(inputs)))
    except Exception as error:
        raise LoweringError(f"torch.export: {first_line(error)}", model_line(error)) from error


def _without_strings(exported: ExportedProgram) -> ExportedProgram:
    """The same, with None for each output that is a string: torch.export saves these and cannot load them."""
    output = exported.graph.output_node()
    output.args = (tuple(None if isinstance(result, str) else result for result in output.args[0]),)
    for spec in exported.graph_signature.output_specs:
        if isinstance(spec.arg, ConstantArgument) and isinstance(spec.arg.value, str):
            spec.arg = ConstantArgument(name=spec.arg.name, value=None)
    return exported


def export_all(module: nn.Module, inputs: Mapping[int, Sequence[Tensor]]) -> dict[int, ExportedProgram]:
    """By batch size, for its inputs: one dynamic program for all but 1, or, where there is none, a program for each.

    Raises LoweringError.
    """
    dynamic = export_dynamic(module, inputs[max(inputs)])
    return {size: (dynamic if size > 1 else None) or export_static(module, inputs[size]) for size in inputs}
