"""Linear layers that read the same tensor: one with the weights of all, and views of its result.

Convolutions are left apart: on GoogLeNet and Inception-v3 at batch 1 (H200) wide ones made the longest path longer, and
the best schedule was no faster.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from opara_server.engine.rewrites.edit import Insert, arguments, aten, calls, constant, is_result, value
from opara_server.engine.rewrites.weights import Weights

Siblings = Sequence[Node]


def merge_linears(module: GraphModule, weights: Weights) -> int:
    """Returns how many linear layers are gone: query, key and value of attention become one, the keys and values that
    all decoder layers compute of the encoder's result another."""
    groups: dict[tuple[Node, torch.dtype], list[Node]] = defaultdict(list)
    for node in calls(module, aten.linear.default):
        given = arguments(node)
        if value(given["weight"]).dim() == 2 and _mergeable(module, node, given["weight"], given["bias"]):
            groups[given["input"], value(given["weight"]).dtype].append(node)
    count = 0
    for siblings in groups.values():
        if len(siblings) > 1:
            _share(module, siblings, _merged(module, weights, siblings))
            count += len(siblings) - 1
    return count


def _mergeable(module: GraphModule, node: Node, weight: Node, bias: Node | None) -> bool:
    """Its weights are known, and its result is none of the module's: a part of a tensor is no output."""
    known = constant(module, weight) is not None and (bias is None or constant(module, bias) is not None)
    return known and not is_result(node)


def _share(module: GraphModule, siblings: Siblings, merged: Node) -> None:
    start, last = 0, value(merged).dim() - 1
    for node in siblings:
        end = start + value(node).shape[last]
        part = Insert(module, siblings[0]).call(aten.slice.Tensor, merged, last, start, end)
        node.replace_all_uses_with(part)
        start = end


def _merged(module: GraphModule, weights: Weights, siblings: Siblings) -> Node:
    given = [arguments(node) for node in siblings]
    tensors = [constant(module, each["weight"]) for each in given]
    biases = [constant(module, each["bias"]) for each in given]
    insert = Insert(module, siblings[0])
    weight = insert.constant("merged_weight", weights.derive(_rows, tensors))
    biased = any(bias is not None for bias in biases)
    bias = insert.constant("merged_bias", weights.derive(_biases, tensors, biases)) if biased else None
    return insert.call(aten.linear.default, given[0]["input"], weight, bias)


def _rows(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors))


def _biases(tensors: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """A bias may be one number for all columns."""
    known = [w.new_zeros(()) if bias is None else bias for w, bias in zip(tensors, biases, strict=True)]
    return torch.cat([bias.expand(len(weight)) for weight, bias in zip(tensors, known, strict=True)])
