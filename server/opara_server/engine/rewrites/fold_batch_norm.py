"""convolution → batch norm with known statistics: one convolution with other weights and a bias."""

from __future__ import annotations

from operator import getitem
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from opara_server.engine.rewrites.edit import Insert, arguments, aten, calls, constant, only_user
from opara_server.engine.rewrites.weights import Weights

CONVOLUTIONS = {
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
    aten.convolution.default,
}


def fold_batch_norm(module: GraphModule, weights: Weights) -> int:
    """Returns how many batch norms are gone. Folded in float64, then rounded to the convolution's dtype."""
    count = 0
    for norm in calls(module, aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default):
        result = norm if norm.target is aten.batch_norm.default else _first_alone(norm)
        folded = _folded(module, weights, norm)
        if result is None or folded is None:
            continue
        result.replace_all_uses_with(_convolution(module, norm, folded))
        count += 1
    return count


def _first_alone(norm: Node) -> Node | None:
    """The node of the normalised tensor, where nobody asks for the statistics beside it."""
    user = only_user(norm)
    return user if user is not None and user.target is getitem and user.args[1] == 0 else None


def _folded(module: GraphModule, weights: Weights, norm: Node) -> tuple[Tensor, Tensor] | None:
    given = arguments(norm)
    conv = given["input"]
    if given.get("training") or conv.target not in CONVOLUTIONS or only_user(conv) is not norm:
        return None
    of = arguments(conv)
    if of.get("transposed"):  # their weights hold the outputs in the second dimension, per group
        return None
    sources = [of["weight"], of["bias"], *(given[name] for name in ("running_mean", "running_var", "weight", "bias"))]
    tensors = [constant(module, source) for source in sources]
    missing = any(tensor is None and source is not None for tensor, source in zip(tensors, sources, strict=True))
    if missing or tensors[0] is None or tensors[2] is None or tensors[3] is None:
        return None
    folded: tuple[Tensor, Tensor] = weights.derive(_fuse, *tensors, given["eps"])
    return folded


def _fuse(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    exact = [None if tensor is None else tensor.double() for tensor in (weight, bias, mean, variance, scale, shift)]
    w, b, rm, rv, bn_w, bn_b = exact
    assert w is not None and rm is not None and rv is not None  # noqa: PT018 - one fact
    fused_weight, fused_bias = fuse_conv_bn_weights(w, b, rm, rv, eps, bn_w, bn_b)
    return fused_weight.detach().to(weight.dtype), fused_bias.detach().to(weight.dtype)


def _convolution(module: GraphModule, norm: Node, folded: tuple[Tensor, Tensor]) -> Node:
    insert = Insert(module, norm)
    conv: Any = arguments(norm)["input"]
    weight, bias = (
        insert.constant(f"folded_{name}", tensor) for name, tensor in zip(("weight", "bias"), folded, strict=True)
    )
    rest = {name: given for name, given in arguments(conv).items() if name not in {"input", "weight", "bias"}}
    return insert.call(conv.target, arguments(conv)["input"], weight, bias, *rest.values())
