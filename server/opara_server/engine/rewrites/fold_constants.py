"""Calls that depend on no input are made now: masks, position biases, casts and views of weights."""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate, map_arg

from opara_server.engine.rewrites.edit import Insert, aten, constant
from opara_server.engine.rewrites.weights import Weights

LIMIT_BYTES = 64 << 20  # of one folded result: expanding a weight must not fill the device


def fold_constants(module: GraphModule, weights: Weights) -> int:
    """Returns how many results of constants alone the rest of the graph reads. One that holds a single value becomes a
    call of ``aten.full``, which kernels take in as a number; any other becomes a buffer."""
    known: dict[Node, Any] = {}
    for node in module.graph.nodes:
        if (tensor := constant(module, node)) is not None:
            known[node] = tensor
        elif _foldable(node, known):
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = weights.derive(node.target, *args, **kwargs)
    return _replace_read(module, known)


def _replace_read(module: GraphModule, known: dict[Node, Any]) -> int:
    """Only what the rest of the graph reads is stored. A view stays, and what it looks at counts as read instead."""
    read = {node for node in known if any(user not in known for user in node.users)}
    count = 0
    for node in reversed(known):
        if node not in read or not node.all_input_nodes or not isinstance(known[node], Tensor):
            continue
        if (number := _single_value(known[node])) is None and _is_view(node, known):
            read.update(node.all_input_nodes)
            continue
        insert = Insert(module, node)
        if number is None:
            new = insert.constant("folded", known[node])
        else:
            like = {"dtype": known[node].dtype, "device": known[node].device}
            new = insert.call(aten.full.default, list(known[node].shape), number, **like)
        node.replace_all_uses_with(new)
        count += 1
    return count


def _foldable(node: Node, known: dict[Node, Any]) -> bool:
    if node.op != "call_function" or any(argument not in known for argument in node.all_input_nodes):
        return False
    if node.target is getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable:
        return False
    results: list[Any] = []
    map_aggregate(node.meta.get("val"), results.append)
    return (
        torch.Tag.nondeterministic_seeded not in node.target.tags
        and all(isinstance(result, Tensor) and result.nbytes <= LIMIT_BYTES for result in results)
        and bool(results)
    )


def _is_view(node: Node, known: dict[Node, Any]) -> bool:
    memory = known[node].untyped_storage().data_ptr()
    sources = (known[source] for source in node.all_input_nodes)
    return any(isinstance(s, Tensor) and s.untyped_storage().data_ptr() == memory for s in sources)


def _single_value(tensor: Tensor) -> float | bool | None:
    if not tensor.numel() or not bool((tensor == tensor.flatten()[0]).all()):
        return None
    number: float | bool = tensor.flatten()[0].item()
    return number
