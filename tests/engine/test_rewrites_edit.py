"""What a graph says of results, told anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule

from opara_server.engine.rewrites.edit import refresh

aten = torch.ops.aten


def needs_contents(x: Tensor) -> Tensor:
    raise RuntimeError("Cannot access data pointer")


def graph_of(told: tuple[int, ...]) -> GraphModule:
    """``x + x``, which the graph tells to be of the shape ``told``, and a call that cannot be run without contents."""
    graph = Graph()
    x = graph.placeholder("x")
    total = graph.call_function(aten.add.Tensor, (x, x))
    result = graph.call_function(needs_contents, (total,))
    graph.output((result,))
    with FakeTensorMode():
        for node, shape in ((x, (2, 3)), (total, told), (result, (7,))):
            node.meta["val"] = torch.empty(shape)
    return GraphModule({}, graph)


def test_a_call_that_cannot_be_run_keeps_what_it_has_while_nothing_changes() -> None:
    module = graph_of((2, 3))
    refresh(module)
    assert [tuple(node.meta["val"].shape) for node in module.graph.nodes if "val" in node.meta] == [
        (2, 3),
        (2, 3),
        (7,),
    ]


def test_it_is_an_error_once_something_has_changed() -> None:
    with pytest.raises(RuntimeError, match="data pointer"):
        refresh(graph_of((3, 2)))
