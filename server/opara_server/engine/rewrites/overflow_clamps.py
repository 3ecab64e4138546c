"""Clamps that first look through the whole tensor for an infinity → clamps of the infinities alone, which fuse."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from opara_server.engine.rewrites.edit import Insert, arguments, aten, calls, value
from opara_server.engine.rewrites.weights import Weights


def overflow_clamps(module: GraphModule, _weights: Weights) -> int:
    """Returns how many clamps look at their own element only.

    T5 of the transformers library clamps float16 tensors to the largest number, or to a little less if any element is
    infinite: a reduction of all after each layer, through which one row of a batch also changes others. Here infinities
    become that little less, and whatever is finite stays as it is. So results differ where an activation overflows, and
    there in finite elements between the two bounds alone.
    """
    count = 0
    for clamp in calls(module, aten.clamp.Tensor):
        bound = _bound_of_infinities(clamp)
        if bound is None:
            continue
        insert, x = Insert(module, clamp), arguments(clamp)["self"]
        most = torch.finfo(value(x).dtype).max
        limited = insert.call(aten.clamp.default, x, -bound, bound)
        finite = insert.call(aten.clamp.default, x, -most, most)  # fused kernels keep x in float32: it may be larger
        infinite = insert.call(aten.isinf.default, x)
        clamp.replace_all_uses_with(insert.call(aten.where.self, infinite, limited, finite))
        count += 1
    return count


def _bound_of_infinities(clamp: Node) -> float | None:
    """b in ``clamp(x, -c, c)`` with ``c = where(isinf(x).any(), b, finfo.max)``; None for any other clamp."""
    given = arguments(clamp)
    x, low, high = given["self"], given["min"], given["max"]
    if not isinstance(high, Node) or not isinstance(low, Node) or high.target is not aten.where.Scalar:
        return None
    if low.target is not aten.neg.default or arguments(low)["self"] is not high:
        return None
    found = arguments(high)
    some = found["condition"]
    if some.target is not aten.any.default or (infinite := arguments(some)["self"]).target is not aten.isinf.default:
        return None
    if arguments(infinite)["self"] is not x or value(clamp).dtype != value(x).dtype:
        return None
    most = torch.finfo(value(x).dtype).max
    bound = float(found["self"])
    return bound if found["other"] == most and 0 < bound < most else None
