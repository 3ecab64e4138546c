"""The same call of the same operands is made once: blocks that share an input often begin with the same ReLU of it."""

from __future__ import annotations

from collections.abc import Hashable
from operator import getitem
from typing import Any

import torch
from torch.fx import GraphModule, Node

from opara_server.engine.rewrites.edit import is_result
from opara_server.engine.rewrites.weights import Weights


def deduplicate(module: GraphModule, _weights: Weights) -> int:
    """Returns how many calls are gone. What a convolution alone reads may now end in a ReLU that alone reads it."""
    first: dict[Hashable, Node] = {}
    count = 0
    for node in list(module.graph.nodes):
        if not _pure(node):
            continue
        earlier = first.setdefault((node.target, _key(node.args), _key(node.kwargs)), node)
        if earlier is not node:
            node.replace_all_uses_with(earlier)
            module.graph.erase_node(node)
            count += 1
    return count


def _pure(node: Node) -> bool:
    """Not chance, nothing that writes, and none of the module's results: those must not be one tensor."""
    if node.op != "call_function" or is_result(node):
        return False
    if node.target is getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable:
        return False
    return torch.Tag.nondeterministic_seeded not in node.target.tags


def _key(value: Any) -> Hashable:
    if isinstance(value, (tuple, list)):
        return tuple(_key(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, _key(value[name])) for name in sorted(value))
    return (type(value), value)
