"""A module as a function from a tuple of tensors to a flat tuple of tensors, and back to the user's structure."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from opara_server.engine.errors import ModelError, explained
from opara_server.engine.spec import ELEMENT_BYTES, TensorSpec
from opara_server.engine.tensors import dtype_name, layout_name, same_values, static_inputs

log = logging.getLogger(__name__)


class FlatModule:
    """Learns the outputs' names and structure from one run at ``rows`` rows.

    Raises ModelError where the module is in training mode, has sparse weights, its forward fails, or an output does not
    have the batch as its first dimension: rows of one request could not be told from another's.
    """

    def __init__(
        self, module: nn.Module, inputs: Sequence[TensorSpec], rows: int, device: torch.device, channels_last: bool
    ) -> None:
        if any(part.training for part in module.modules()):
            raise ModelError("the model is in training mode: call model.eval() first")
        if not inputs:
            raise ModelError("the model takes no tensor: there are no rows to batch")
        for name, weight in (*module.named_parameters(), *module.named_buffers()):
            if weight.layout != torch.strided:
                raise ModelError(f"{name!r} is a {layout_name(weight)} tensor: weights must be dense")
        self.module = module
        self.inputs = tuple(inputs)
        self._device = device
        self._channels_last = channels_last
        buffers = {name: tensor.clone() for name, tensor in module.named_buffers()}
        leaves, self._structure = pytree.tree_flatten_with_path(self._trial(rows))
        changed = [name for name, tensor in module.named_buffers() if not same_values(tensor, buffers[name])]
        if changed:
            raise ModelError(f"the model writes to {changed[0]!r} while it runs: answers would depend on earlier ones")
        self._constants = [None if isinstance(leaf, Tensor) else leaf for _, leaf in leaves]
        self._positions = [i for i, (_, leaf) in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.outputs = tuple(_output_spec(leaves[i], rows, len(self._positions)) for i in self._positions)
        if not self.outputs:
            raise ModelError("the model returns no tensor")
        for path, leaf in leaves:
            if not isinstance(leaf, Tensor | None):
                name, kind = _output_name(path, len(leaves)), type(leaf).__name__
                log.warning("output %r is a %s, no tensor: clients do not get it, and it must not change", name, kind)

    def check(self, rows: int) -> None:
        """Raise ModelError unless the module takes ``rows`` rows and gives the same outputs with as many."""
        leaves = pytree.tree_leaves(self._trial(rows))
        constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        if constants != self._constants:
            raise ModelError(f"the outputs change with the batch size: {constants} for {rows} rows")
        found = [(tuple(t.shape), dtype_name(t.dtype)) for t in leaves if isinstance(t, Tensor)]
        expected = [((rows, *spec.shape), spec.dtype) for spec in self.outputs]
        if found != expected:
            raise ModelError(f"the outputs change with the batch size: {found} for {rows} rows, not {expected}")

    def _trial(self, rows: int) -> Any:
        try:
            return self.module(*static_inputs(self.inputs, rows, self._device, self._channels_last))
        except Exception as error:
            raise ModelError(
                f"the model's forward fails on {rows} random rows: {explained(error)}{self._hint()}"
            ) from error

    def _hint(self) -> str:
        weights = {dtype_name(weight.dtype) for weight in self.module.parameters() if weight.is_floating_point()}
        given = {spec.dtype for spec in self.inputs if "float" in spec.dtype}
        if not weights or given <= weights:
            return ""
        found = f"inputs are {', '.join(sorted(given))}, weights {', '.join(sorted(weights))}"
        return f"; {found}: each input has a dtype of its own"

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.run(self.module, inputs)

    def run(self, module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same for another copy of the module. Raises ModelError where its results have other shapes than
        ``outputs``: whoever copied them would broadcast them, or fail."""
        results = tuple(leaf for leaf in pytree.tree_leaves(module(*inputs)) if isinstance(leaf, Tensor))
        found = [tuple(result.shape) for result in results]
        expected = [(len(inputs[0]), *spec.shape) for spec in self.outputs]
        if found != expected:
            raise ModelError(f"the outputs change with what the inputs hold: shapes {found}, not {expected}")
        return results

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        """The module's own output structure around ``tensors``, one for each of ``outputs``."""
        leaves = list(self._constants)
        for position, tensor in zip(self._positions, tensors, strict=True):
            leaves[position] = tensor
        return pytree.tree_unflatten(leaves, self._structure)


def _output_name(path: tuple[Any, ...], count: int) -> str:
    """The keys on the way to it; "output" goes ahead of a number, and stands alone for the one tensor of all."""
    keys = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    if not keys or (count == 1 and len(keys) == 1 and keys[0].isdigit()):
        return "output"
    return ("output" if keys[0].isdigit() else "") + "_".join(keys)


def _output_spec(leaf: tuple[tuple[Any, ...], Tensor], rows: int, count: int) -> TensorSpec:
    path, tensor = leaf
    name = _output_name(path, count)
    if tensor.dim() == 0 or tensor.shape[0] != rows:
        raise ModelError(
            f"output {name!r} has shape {list(tensor.shape)} for {rows} rows: its first dimension must count rows"
        )
    if dtype_name(tensor.dtype) not in ELEMENT_BYTES:
        raise ModelError(f"output {name!r} is {dtype_name(tensor.dtype)}, not one of {', '.join(ELEMENT_BYTES)}")
    return TensorSpec(name, dtype_name(tensor.dtype), tuple(tensor.shape[1:]))
