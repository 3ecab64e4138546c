"""The `aten` lowering: an exported module → a program whose operators are the ATen calls PyTorch itself would make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from opara_server.engine.errors import LoweringError
from opara_server.engine.graph import Kind
from opara_server.engine.lowering import program_of
from opara_server.engine.program import Program
from opara_server.engine.trial_record import Given


def lower(exported: ExportedProgram, inputs: Sequence[Tensor]) -> Program:
    """The program of ``exported`` for exactly these static inputs. Raises as ``program_of`` does."""
    return program_of(exported.graph_module, list(_given(exported, iter(inputs))), "aten")


def _given(exported: ExportedProgram, inputs: Iterator[Tensor]) -> Iterator[Given]:
    for spec in exported.graph_signature.input_specs:
        if isinstance(spec.arg, ConstantArgument):
            yield Given(spec.arg.value)
        elif spec.kind is InputKind.USER_INPUT:
            yield Given(next(inputs), Kind.INPUT, spec.arg.name)
        elif spec.kind in {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}:
            yield Given(_weight(exported, str(spec.target)), Kind.CONSTANT, str(spec.target))
        else:
            raise LoweringError(f"input {spec.arg.name} is a {spec.kind.name.lower()}, not a tensor")


def _weight(exported: ExportedProgram, target: str) -> Tensor:
    found = exported.state_dict.get(target)
    weight = exported.constants[target] if found is None else found
    if not isinstance(weight, Tensor):
        raise LoweringError(f"constant {target} is not a tensor")
    return weight
