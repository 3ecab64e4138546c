"""Tensors with more channels than the model gave them, and what calls make of such tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from torch import Tensor
from torch.fx import Node

from opara_server.engine.rewrites.edit import Insert, arguments, aten, value

PER_CHANNEL = {  # of their first argument; their other arguments have nothing to do with channels
    aten.adaptive_avg_pool2d.default,
    aten.avg_pool2d.default,
    aten.max_pool2d.default,
    aten.upsample_bicubic2d.vec,
    aten.upsample_bilinear2d.vec,
    aten.upsample_nearest2d.vec,
    aten.clone.default,
}
ELEMENTWISE = {  # of one tensor, finite at every finite value
    aten.clamp.default,
    aten.clamp_min.default,
    aten.elu.default,
    aten.gelu.default,
    aten.hardsigmoid.default,
    aten.hardswish.default,
    aten.hardtanh.default,
    aten.leaky_relu.default,
    aten.relu.default,
    aten.relu6.default,
    aten.sigmoid.default,
    aten.silu.default,
    aten.tanh.default,
}
OF_TWO = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor}
SPATIAL = {2, 3, -1, -2}


@dataclass(frozen=True)
class Wide:
    """``node`` [N, width, H, W] holds channel i of a tensor of the model in its channel ``slots[i]``. Its other
    channels hold finite numbers, zeros mostly, which a convolution multiplies by zero."""

    node: Node
    slots: tuple[int, ...]

    @property
    def width(self) -> int:
        return int(value(self.node).shape[1])

    @property
    def dense(self) -> bool:
        """The channels lie side by side, from the first."""
        return self.slots == tuple(range(len(self.slots)))


def same(wide: Node) -> Wide:
    """A tensor that has the model's own channels."""
    return Wide(wide, tuple(range(value(wide).shape[1])))


def widened(insert: Insert, node: Node, wide: Mapping[Node, Wide]) -> Wide | None:
    """``node``'s call with the wide operands that there are of its operands; None where it has to do with channels in
    any other way than one by one."""
    if node.target in OF_TWO:
        return _of_two(insert, node, wide)
    if node.target is aten.cat.default:
        return _cat(insert, node, wide)
    if (source := wide.get(node.all_input_nodes[0])) is None or not keeps_channels(node):
        return None
    return Wide(insert.call(node.target, source.node, *node.args[1:], **node.kwargs), source.slots)


def keeps_channels(node: Node) -> bool:
    """Whether ``widened`` knows the call."""
    if node.target in {aten.slice.Tensor, aten.mean.dim, aten.pad.default, aten.constant_pad_nd.default}:
        return _spatial(node)
    if node.target is aten.cat.default:
        return arguments(node)["dim"] in {1, -3} and all(_image(part) for part in arguments(node)["tensors"])
    return node.target in PER_CHANNEL | ELEMENTWISE | OF_TWO and _image(node)


def _spatial(node: Node) -> bool:
    given = arguments(node)
    if node.target is aten.slice.Tensor:
        return _image(node) and given["dim"] in SPATIAL
    if node.target is aten.mean.dim:
        return _image(node) and bool(given["keepdim"]) and set(given["dim"] or ()) <= SPATIAL and bool(given["dim"])
    return _image(node) and len(given["pad"]) <= 4 and isfinite(given["value"] or 0.0)


def _image(node: Node) -> bool:
    result = node.meta.get("val")
    return isinstance(result, Tensor) and result.dim() == 4


def _of_two(insert: Insert, node: Node, wide: Mapping[Node, Wide]) -> Wide | None:
    """Operands of the same slots; one of them may be the same for all channels."""
    given = arguments(node)
    one, other = given["self"], given["other"]
    wides = [wide[operand] for operand in (one, other) if isinstance(operand, Node) and operand in wide]
    if not wides or any(w.slots != wides[0].slots or w.width != wides[0].width for w in wides):
        return None
    replaced = [_operand(operand, wide) for operand in (one, other)]
    if any(operand is None for operand in replaced):
        return None
    return Wide(insert.call(node.target, *replaced, **node.kwargs), wides[0].slots)


def _operand(operand: Any, wide: Mapping[Node, Wide]) -> Any | None:
    if not isinstance(operand, Node):
        return operand
    if operand in wide:
        return wide[operand].node
    shape = value(operand).shape
    return operand if len(shape) < 3 or shape[-3] == 1 else None


def _cat(insert: Insert, node: Node, wide: Mapping[Node, Wide]) -> Wide | None:
    parts: Sequence[Wide] = [wide.get(part) or same(part) for part in arguments(node)["tensors"]]
    starts = [sum(part.width for part in parts[:i]) for i in range(len(parts))]
    slots = [start + slot for start, part in zip(starts, parts, strict=True) for slot in part.slots]
    return Wide(insert.call(node.target, [part.node for part in parts], 1), tuple(slots))
