"""Linear layers and convolutions that read the same tensor: one with the weights of all, and views of its result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from opara_server.engine.rewrites.convolutions import convolution
from opara_server.engine.rewrites.edit import Insert, arguments, aten, calls, constant, refresh, value
from opara_server.engine.rewrites.weights import Weights

Siblings = Sequence[Node]


def merge_linears(module: GraphModule, weights: Weights) -> int:
    """Returns how many linear layers are gone: query, key and value of attention become one, the keys and values that
    all decoder layers compute of the encoder's result another."""
    groups: dict[Hashable, list[Node]] = defaultdict(list)
    for node in calls(module, aten.linear.default):
        given = arguments(node)
        if value(given["weight"]).dim() == 2 and _mergeable(module, node, given["weight"], given["bias"]):
            groups[given["input"], value(given["weight"]).dtype].append(node)
    return _merge_all(module, weights, groups, _merged_linear)


def merge_convolutions(module: GraphModule, weights: Weights) -> int:
    """Returns how many convolutions are gone, of those with the same kernel size and geometry on the same tensor.

    A part of a channels_last result is not dense, and cuDNN's next convolution would copy it: this helps where a kernel
    in between (bias, ReLU) reads the part and writes a dense tensor.
    """
    groups: dict[Hashable, list[Node]] = defaultdict(list)
    for node in calls(module, aten.conv2d.default, aten.conv2d.padding, aten.convolution.default):
        conv = convolution(node)
        if conv is not None and conv.groups == 1 and _mergeable(module, node, conv.weight, conv.bias):
            weight = value(conv.weight)
            groups[conv.x, weight.dtype, weight.shape[2:], conv.stride, conv.padding, conv.dilation].append(node)
    return _merge_all(module, weights, groups, _merged_convolution)


def _mergeable(module: GraphModule, node: Node, weight: Node, bias: Node | None) -> bool:
    """Its weights are known, and its result is none of the module's: a part of a tensor is no output."""
    known = constant(module, weight) is not None and (bias is None or constant(module, bias) is not None)
    return known and all(user.op != "output" for user in node.users)


def _merge_all(
    module: GraphModule,
    weights: Weights,
    groups: dict[Hashable, list[Node]],
    merged: Callable[[GraphModule, Weights, Siblings], tuple[Node, int]],
) -> int:
    count = 0
    for siblings in groups.values():
        if len(siblings) > 1:
            _share(module, siblings, *merged(module, weights, siblings))
            count += len(siblings) - 1
    refresh(module)
    return count


def _share(module: GraphModule, siblings: Siblings, merged: Node, dim: int) -> None:
    start = 0
    for node in siblings:
        end = start + value(node).shape[dim]
        part = Insert(module, siblings[0]).call(aten.slice.Tensor, merged, dim, start, end)
        node.replace_all_uses_with(part)
        start = end


def _merged_linear(module: GraphModule, weights: Weights, siblings: Siblings) -> tuple[Node, int]:
    first = siblings[0]
    x = arguments(first)["input"]
    weight, bias = _joined(module, weights, siblings)
    return Insert(module, first).call(aten.linear.default, x, weight, bias), value(x).dim() - 1


def _merged_convolution(module: GraphModule, weights: Weights, siblings: Siblings) -> tuple[Node, int]:
    conv = convolution(siblings[0])
    assert conv is not None
    weight, bias = _joined(module, weights, siblings)
    return Insert(module, conv.node).call(aten.conv2d.default, conv.x, weight, bias, *conv.geometry), 1


def _joined(module: GraphModule, weights: Weights, siblings: Siblings) -> tuple[Node, Node | None]:
    given = [arguments(node) for node in siblings]
    tensors = [constant(module, each["weight"]) for each in given]
    biases = [constant(module, each["bias"]) for each in given]
    insert = Insert(module, siblings[0])
    weight = insert.constant("merged_weight", weights.derive(_rows, tensors))
    if all(bias is None for bias in biases):
        return weight, None
    return weight, insert.constant("merged_bias", weights.derive(_biases, tensors, biases))


def _rows(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors))


def _biases(tensors: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    pairs = zip(tensors, biases, strict=True)
    return torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in pairs])
