"""linear → ReLU or GELU: one kernel of cuBLAS's instead of two."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from opara_server.engine.rewrites.edit import Insert, arguments, aten, calls, constant, only_user, value
from opara_server.engine.rewrites.weights import Weights

GELU = {"cuda": "tanh", "cpu": "none"}  # which GELU PyTorch's fused operator computes on a device


def linear_epilogues(module: GraphModule, weights: Weights) -> int:
    """Returns how many activations are gone. GELU only in the form that the device computes: on CUDA the tanh
    approximation, never in place of the exact one. A linear layer without a bias gets one of zeros."""
    count = 0
    for act in calls(module, aten.relu.default, aten.gelu.default):
        linear = arguments(act)["self"]
        if (
            linear.target is not aten.linear.default
            or only_user(linear) is not act
            or not _supported(module, linear, act)
        ):
            continue
        act.replace_all_uses_with(_fused(module, weights, linear, act))
        count += 1
    return count


def _supported(module: GraphModule, linear: Node, act: Node) -> bool:
    given = arguments(linear)
    if (
        constant(module, given["weight"]) is None
        or value(given["weight"]).dim() != 2
        or value(given["input"]).dim() < 2
    ):
        return False
    return act.target is aten.relu.default or arguments(act)["approximate"] == GELU.get(value(act).device.type)


def _fused(module: GraphModule, weights: Weights, linear: Node, act: Node) -> Node:
    insert = Insert(module, act)
    x, weight, bias = (arguments(linear)[name] for name in ("input", "weight", "bias"))
    if bias is None:
        bias = insert.constant("linear_bias", weights.derive(_no_bias, constant(module, weight)))
    flat = value(x).dim() == 2
    rows = x if flat else insert.call(aten.reshape.default, x, [-1, value(x).shape[-1]])
    turned = insert.call(aten.t.default, weight)
    gelu = act.target is aten.gelu.default
    out = insert.call(aten._addmm_activation.default, bias, rows, turned, use_gelu=gelu)
    return out if flat else insert.call(aten.reshape.default, out, [*value(x).shape[:-1], value(weight).shape[0]])


def _no_bias(weight: Tensor) -> Tensor:
    return torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
