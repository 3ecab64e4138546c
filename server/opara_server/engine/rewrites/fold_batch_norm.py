"""convolution → batch norm with known statistics: one convolution with other weights and a bias."""

from __future__ import annotations

from operator import getitem

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from opara_server.engine.rewrites.edit import Insert, arguments, aten, calls, constant, only_user, value
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
    """Returns how many batch norms are gone, also of convolutions that a cat joins. Folded in float64, then rounded to
    the convolution's dtype."""
    count = 0
    for norm in calls(module, aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default):
        result = norm if norm.target is aten.batch_norm.default else _first_alone(norm)
        parts = _convolutions(module, norm)
        if result is None or not parts:
            continue
        start, folded = 0, []
        for conv in parts:
            folded.append(_folded(module, weights, conv, norm, start))
            start += value(conv).shape[1]
        joined = Insert(module, norm).call(aten.cat.default, folded, 1) if len(folded) > 1 else folded[0]
        result.replace_all_uses_with(joined)
        count += 1
    return count


def _first_alone(norm: Node) -> Node | None:
    """The node of the normalised tensor, where nobody asks for the statistics beside it."""
    user = only_user(norm)
    return user if user is not None and user.target is getitem and user.args[1] == 0 else None


def _convolutions(module: GraphModule, norm: Node) -> list[Node]:
    """What ``norm`` normalises and nobody else reads; empty where one is no convolution or some weight is not known."""
    given = arguments(norm)
    joined = given["input"]
    if given.get("training") or only_user(joined) is not norm:
        return []
    if any(constant(module, given[name]) is None for name in ("running_mean", "running_var")):
        return []
    if not all(_known(module, given[name]) for name in ("weight", "bias")):
        return []
    if joined.target is aten.cat.default and arguments(joined)["dim"] == 1:
        parts = arguments(joined)["tensors"]
        return list(parts) if all(_foldable(module, part, joined) for part in parts) else []
    return [joined] if _foldable(module, joined, norm) else []


def _foldable(module: GraphModule, conv: Node, reader: Node) -> bool:
    if conv.target not in CONVOLUTIONS or only_user(conv) is not reader:
        return False
    of = arguments(conv)
    if of.get("transposed"):  # their weights hold the outputs in the second dimension, per group
        return False
    if value(conv).dim() != value(of["weight"]).dim():  # no batch: the second dimension is not the outputs'
        return False
    return constant(module, of["weight"]) is not None and _known(module, of["bias"])


def _known(module: GraphModule, weight: Node | None) -> bool:
    return weight is None or constant(module, weight) is not None


def _folded(module: GraphModule, weights: Weights, conv: Node, norm: Node, start: int) -> Node:
    """The convolution of the norm's channels from ``start`` on."""
    of, given = arguments(conv), arguments(norm)
    end = start + value(conv).shape[1]
    found = [constant(module, given[name]) for name in ("running_mean", "running_var", "weight", "bias")]
    statistics = [None if tensor is None else tensor[start:end] for tensor in found]
    own = [constant(module, of[name]) for name in ("weight", "bias")]
    weight, bias = weights.derive(_fuse, *own, *statistics, given["eps"])
    insert = Insert(module, norm)
    new = (insert.constant("folded_weight", weight), insert.constant("folded_bias", bias))
    rest = [of[name] for name in of if name not in {"input", "weight", "bias"}]
    return insert.call(conv.target, of["input"], *new, *rest)


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
