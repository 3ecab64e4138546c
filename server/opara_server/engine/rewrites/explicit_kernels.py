"""Our own Triton kernels: they write their results where they are told, into planned memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from opara_server.engine.rewrites.attention_operator import ATTENTION, ATTENTION_OUT, attention_call, layer_of
from opara_server.engine.rewrites.attention_tile import is_ours
from opara_server.engine.rewrites.depthwise_operator import DEPTHWISE, DEPTHWISE_OUT, depthwise_call
from opara_server.engine.rewrites.edit import Insert, arguments, aten, calls, is_channels_last, value
from opara_server.engine.rewrites.weights import Weights
from opara_server.engine.triton_call import TritonCall

TRITON_CALLS: Mapping[object, Callable[..., TritonCall]] = {
    ATTENTION_OUT: attention_call,
    DEPTHWISE_OUT: depthwise_call,
}
"""By operator: what it launches, of its arguments."""

QUERIES_OUTSIDE = [0, 2, 1, 3]  # the dimensions of a result from the outermost to the innermost
CHANNELS_LAST = [0, 2, 3, 1]
DENSE = torch.contiguous_format


def explicit_kernels(module: GraphModule, _weights: Weights) -> int:
    """Returns how many calls write where they are told. Not among them is attention by PyTorch's kernels, which
    allocate their results. What a kernel would have to copy first is copied by a call of its own."""
    count = 0
    for node in calls(module, ATTENTION):
        query, key, val, *others = arguments(node).values()
        if not is_ours(layer_of(value(query), value(key), value(val))):
            continue
        insert = Insert(module, node)
        operands = [x if value(x).stride(-1) == 1 else _copy(insert, x, DENSE) for x in (query, key, val)]
        _tell(insert, node, ATTENTION_OUT, [*operands, *others], QUERIES_OUTSIDE)
        count += 1
    for node in calls(module, DEPTHWISE):
        insert, (x, *others) = Insert(module, node), arguments(node).values()
        image = x if is_channels_last(value(x)) else _copy(insert, x, torch.channels_last)
        _tell(insert, node, DEPTHWISE_OUT, [image, *others], CHANNELS_LAST)
        count += 1
    return count


def _copy(insert: Insert, x: Node, layout: torch.memory_format) -> Node:
    return insert.call(aten.clone.default, x, memory_format=layout)


def _tell(insert: Insert, node: Node, operator: object, args: Sequence[Any], order: Sequence[int]) -> None:
    out = insert.memory(value(node), order)
    insert.call(operator, *args, out)
    node.replace_all_uses_with(out)
