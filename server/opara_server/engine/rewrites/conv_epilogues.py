"""convolution [+ bias] [+ residual] → ReLU: one kernel of cuDNN's instead of two."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from opara_server.engine.rewrites.convolutions import Convolution, convolution
from opara_server.engine.rewrites.edit import (
    Insert,
    arguments,
    aten,
    constant,
    is_channels_last,
    only_user,
    value,
)
from opara_server.engine.rewrites.operators import CONVOLUTION_RELU
from opara_server.engine.rewrites.weights import Weights


def conv_epilogues(module: GraphModule, weights: Weights) -> int:
    """Returns how many ReLUs are gone. Only where the convolution's result is channels_last, as cuDNN's will be, and
    nothing else reads what comes between. A residual must be there before the convolution could begin: it would have to
    wait. One that is itself a convolution hands its bias over: it is then one kernel, too."""
    count = 0
    depth: dict[Node, int] = {}
    for node in list(module.graph.nodes):
        _measure(node, depth)
        if (found := _chain(module, node, depth)) is not None:
            node.replace_all_uses_with(_fused(module, weights, node, *found))
            count += 1
    return count


def _measure(node: Node, depth: dict[Node, int]) -> int:
    """How many calls lead to ``node`` on the longest way from an input, also written down in ``depth``."""
    if node not in depth:
        depth[node] = max((_measure(source, depth) + 1 for source in node.all_input_nodes), default=0)
    return depth[node]


def _chain(module: GraphModule, relu: Node, depth: Mapping[Node, int]) -> tuple[Convolution, Node | None] | None:
    """The convolution whose bias, residual and ReLU end in ``relu``, and the residual. None for any other call."""
    if relu.target is not aten.relu.default:
        return None
    before = arguments(relu)["self"]
    if only_user(before) is not relu:
        return None
    if (conv := _fusable(module, before, before)) is not None:
        return conv, None
    terms = _terms(before)
    for end, residual in (terms, terms[::-1]) if terms else ():
        conv = _fusable(module, end, before)
        if conv is not None and only_user(end) is before and depth[residual] <= depth[conv.x]:
            return conv, residual
    return None


def _terms(total: Node) -> tuple[Node, Node] | None:
    """The two tensors of one shape and dtype that ``total`` adds."""
    if total.target is not aten.add.Tensor or arguments(total)["alpha"] != 1:
        return None
    one, other = arguments(total)["self"], arguments(total)["other"]
    if one is other or not isinstance(one, Node) or not isinstance(other, Node):
        return None
    alike = value(one).shape == value(other).shape and value(one).dtype == value(other).dtype
    return (one, other) if alike else None


def _fusable(module: GraphModule, node: Node, end: Node) -> Convolution | None:
    """``node`` as a convolution that cuDNN computes with its epilogue."""
    conv = convolution(node)
    if conv is None or conv.groups != 1 or not is_channels_last(value(node)) or not is_channels_last(value(end)):
        return None
    known = [constant(module, weight) is not None for weight in (conv.weight, conv.bias) if weight is not None]
    return conv if all(known) else None


def _fused(module: GraphModule, weights: Weights, relu: Node, conv: Convolution, residual: Node | None) -> Node:
    insert = Insert(module, relu)
    biases = [conv.bias]
    if residual is not None and (side := _biased(module, residual)) is not None:
        biases.append(side.bias)
        residual = insert.call(aten.conv2d.default, side.x, side.weight, None, *side.geometry)
    weight = constant(module, conv.weight)
    assert weight is not None
    known = [tensor for tensor in (constant(module, bias) for bias in biases) if tensor is not None]
    return insert.call(
        CONVOLUTION_RELU,
        conv.x,
        insert.constant("conv_weight", weights.derive(channels_last, weight)),
        insert.constant("conv_bias", weights.derive(_sum, weight, *known)),
        residual,
        *conv.geometry,
    )


def _biased(module: GraphModule, residual: Node) -> Convolution | None:
    side = convolution(residual)
    if side is None or constant(module, side.bias) is None or only_user(residual) is None:
        return None
    return side


def channels_last(weight: Tensor) -> Tensor:
    """The layout in which cuDNN takes weights."""
    return weight.contiguous(memory_format=torch.channels_last)


def _sum(weight: Tensor, *biases: Tensor) -> Tensor:
    """One bias per output channel, zero without any: cuDNN wants one, and PyTorch would fill it on every call."""
    total = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
    for bias in biases:
        total += bias
    return total.to(weight.dtype)
