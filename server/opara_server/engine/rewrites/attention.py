"""Attention that PyTorch would take apart when it is compiled, or that is small → ``opara::attention``: one kernel,
ours or PyTorch's memory-efficient attention (Rabe and Staats, "Self-attention Does Not Need O(n²) Memory", 2021)."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from opara_server.engine.rewrites.attention_operator import ATTENTION, layer_of
from opara_server.engine.rewrites.attention_tile import is_ours
from opara_server.engine.rewrites.edit import Insert, arguments, aten, calls, constant, value
from opara_server.engine.rewrites.weights import Weights

ALIGNED_BYTES = 16  # where rows of operands begin
FLASH = {torch.float16, torch.bfloat16}  # without a mask PyTorch has faster kernels for these where there is much to do
DTYPES = FLASH | {torch.float32}


def attention(module: GraphModule, weights: Weights) -> int:
    """Returns how many attentions are one kernel now. Masks become biases of the scores, with -inf where they hide;
    those that do not depend on inputs do so at load (after ``fold_constants``)."""
    count = 0
    for node in calls(module, aten.scaled_dot_product_attention.default):
        given = arguments(node)
        if not _supported(given):
            continue
        insert = Insert(module, node)
        bias = None if given["attn_mask"] is None else _bias(module, weights, insert, given)
        operands = [given[name] for name in ("query", "key", "value")]
        node.replace_all_uses_with(insert.call(ATTENTION, *operands, bias, given["is_causal"], given["scale"]))
        module.graph.erase_node(node)  # dropout could make it impure, for which reason it would stay
        count += 1
    return count


def _supported(given: dict[str, Any]) -> bool:
    query, key, val = (value(given[name]) for name in ("query", "key", "value"))
    if given["dropout_p"] or query.dim() != 4 or query.dtype not in DTYPES:
        return False
    if any(other.dim() != 4 or other.shape[:2] != query.shape[:2] for other in (key, val)):  # fewer heads, say
        return False
    if not all(tensor.shape[-1] % _unit(tensor) == 0 and _aligned(tensor) for tensor in (query, key, val)):
        return False
    if given["attn_mask"] is None:
        return query.dtype not in FLASH or is_ours(layer_of(query, key, val))
    mask = value(given["attn_mask"])
    return mask.dtype in {torch.bool, query.dtype} and 2 <= mask.dim() <= 4 and mask.shape[-1] == key.shape[2]


def _unit(tensor: Tensor) -> int:
    return ALIGNED_BYTES // tensor.element_size()


def _aligned(tensor: Tensor) -> bool:
    *outer, inner = tensor.stride()
    starts = [stride for stride, size in zip(outer, tensor.shape, strict=False) if size > 1]
    return inner == 1 and all(start % _unit(tensor) == 0 for start in (*starts, tensor.storage_offset()))


def _bias(module: GraphModule, weights: Weights, insert: Insert, given: dict[str, Any]) -> Node:
    """The mask as the operator takes it; computed here and now where it is a constant."""
    mask, dtype = given["attn_mask"], value(given["query"]).dtype
    if (known := constant(module, mask)) is not None:
        return insert.constant("attention_bias", weights.derive(_added_now, known, dtype))
    bias: Node = _added(mask, dtype, insert.call, value)
    return bias


def _added_now(mask: Tensor, dtype: torch.dtype) -> Tensor:
    bias: Tensor = _added(mask, dtype, lambda target, *args, **kwargs: target(*args, **kwargs), lambda tensor: tensor)
    return bias


def _added(mask: Any, dtype: torch.dtype, call: Callable[..., Any], look: Callable[[Any], Tensor]) -> Any:
    """What is added to the scores: four dimensions, rows that are aligned. ``call`` makes the calls that it takes, of
    whatever ``mask`` is, which ``look`` shows as a tensor."""
    if look(mask).dtype == torch.bool:
        seen = call(aten.full.default, [], 0.0, dtype=dtype, device=look(mask).device)
        mask = call(aten.where.ScalarOther, mask, seen, -inf)
    if missing := -look(mask).shape[-1] % _unit(look(mask)):
        mask = call(aten.constant_pad_nd.default, mask, [0, missing])
    elif not _aligned(look(mask)):
        mask = call(aten.clone.default, mask, memory_format=torch.contiguous_format)
    while look(mask).dim() < 4:
        mask = call(aten.unsqueeze.default, mask, 0)
    return mask
