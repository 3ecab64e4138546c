"""Attention masks that hide nothing are dropped: without a mask PyTorch may choose its fastest attention kernels."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from opara_server.engine.rewrites.edit import Insert, arguments, aten, calls, constant, value
from opara_server.engine.rewrites.weights import Weights


def idle_masks(module: GraphModule, _weights: Weights) -> int:
    """Returns how many masks are gone. An export cannot skip an all-True mask as the model would: transformers looks
    into it, which a trace must not. After ``fold_constants`` its content is known. Also sums with zeros that leave
    shape and dtype as they are: masks of attention that is written out."""
    count = 0
    for attention in calls(module, aten.scaled_dot_product_attention.default):
        given = arguments(attention)
        if (mask := given["attn_mask"]) is not None and _is_all(module, mask, value(mask).dtype == torch.bool):
            rest = {name: given[name] for name in ("dropout_p", "is_causal", "scale", "enable_gqa")}
            operands = [given[name] for name in ("query", "key", "value")]
            new = Insert(module, attention).call(attention.target, *operands, None, **rest)
            attention.replace_all_uses_with(new)
            module.graph.erase_node(attention)  # dropout could make it impure, for which reason it would stay
            count += 1
    for total in calls(module, aten.add.Tensor):
        one, other = arguments(total)["self"], arguments(total)["other"]
        if arguments(total)["alpha"] != 1:
            continue
        for kept, added in ((one, other), (other, one)):
            if isinstance(added, Node) and _alike(kept, total) and _is_all(module, added, 0):
                total.replace_all_uses_with(kept)
                count += 1
                break
    return count


def _is_all(module: GraphModule, node: Node, number: float) -> bool:
    if node.target is aten.full.default:
        return bool(arguments(node)["fill_value"] == number)
    tensor = constant(module, node)
    return tensor is not None and bool((tensor == number).all())


def _alike(kept: object, total: Node) -> bool:
    """Whether the rest of the graph cannot tell them apart. Not for inputs and weights: no output may be their view."""
    if not isinstance(kept, Node) or kept.op != "call_function":
        return False
    one, other = value(kept), value(total)
    return one.shape == other.shape and one.dtype == other.dtype and one.stride() == other.stride()
