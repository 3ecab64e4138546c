"""Rewriting small modules for the tests."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from opara_server.engine.export import export_static
from opara_server.engine.rewrites import Weights, apply, functional

CHANNELS_LAST = torch.channels_last
TORCH_WARNS = pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\):FutureWarning")  # of itself


def settled(module: nn.Module) -> nn.Module:
    """In eval mode, channels_last, with batch norms that have seen something."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor, low, high in (
                (part.running_mean, -1, 1),
                (part.running_var, 0.5, 2),
                (part.weight, 0.5, 2),
                (part.bias, -1, 1),
            ):
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high)
    for weight in module.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=CHANNELS_LAST)
    return module.eval()


def image(channels: int = 3, side: int = 8, rows: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, channels, side, side, dtype=dtype).to(memory_format=CHANNELS_LAST)


def rewritten(
    module: nn.Module,
    inputs: Sequence[Tensor],
    *names: str,
    weights: Weights | None = None,
    tolerance: float = 1e-5,
) -> GraphModule:
    """After the passes ``names``. Has the module's results on ``inputs``, or this fails."""
    graph = apply(functional(export_static(module, inputs)), names, weights)
    assert_same(graph, module, inputs, tolerance)
    return graph


def assert_same(graph: GraphModule, module: nn.Module, inputs: Sequence[Tensor], tolerance: float) -> None:
    """Both on ``inputs`` and in float64, where a wrong result cannot hide behind rounding."""
    with torch.no_grad():
        torch.testing.assert_close(graph(*inputs), module(*inputs), rtol=10 * tolerance, atol=tolerance)
        doubles = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
        exact = copy.deepcopy(module).double()(*doubles)
        for out, ref in zip(pytree.tree_leaves(graph(*inputs)), pytree.tree_leaves(exact), strict=True):
            if ref.is_floating_point():
                assert float((out - ref).norm() / ref.norm()) < tolerance


def operators(graph: GraphModule) -> Counter[str]:
    return Counter(_name(node.target) for node in graph.graph.nodes if node.op == "call_function")


def _name(target: object) -> str:
    packet = getattr(target, "overloadpacket", target)
    return str(getattr(packet, "__name__", packet))


def assert_true_metadata(graph: GraphModule, *inputs: Tensor) -> None:
    """Shapes, dtypes and strides that the graph tells of its tensors are those of a real run."""

    class Comparing(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            real, told = super().run_node(n), n.meta.get("val")
            if isinstance(told, Tensor):
                assert (real.shape, real.dtype, real.stride()) == (told.shape, told.dtype, told.stride()), (
                    n.format_node()
                )
            return real

    with torch.no_grad():
        Comparing(graph).run(*inputs)
