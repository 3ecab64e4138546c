"""Exported program → the graph that the rewrites work on."""

from __future__ import annotations

from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from opara_server.engine.calls import CHECKS
from opara_server.engine.rewrites.edit import aten, tidy, value

COPIES = {aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default}
VIEWS = {aten.view.default, aten._unsafe_view.default}  # fail where a rewrite changes strides; a reshape does not


def functional(exported: ExportedProgram) -> GraphModule:
    """The program's module with in-place calls replaced, without checks of what an export has settled, and without
    copies that change nothing: dropout of a model in eval mode is one. Its weights are the program's own tensors."""
    module = exported.run_decompositions({}).module(check_guards=False)
    assert isinstance(module, GraphModule)
    for node in list(module.graph.nodes):
        if getattr(node.target, "overloadpacket", None) in CHECKS:
            module.graph.erase_node(node)
        elif node.target in COPIES and _idle(node):
            node.replace_all_uses_with(node.args[0])
        elif node.target in VIEWS:
            node.target = aten.reshape.default
    tidy(module)
    return module


def _idle(copy: Node) -> bool:
    """Copies of inputs and weights stay: an output must not be a view of one, and a program may write to them."""
    source = copy.args[0]
    return (
        isinstance(source, Node)
        and source.op == "call_function"
        and value(source).stride() == value(copy).stride()
        and value(source).dtype == value(copy).dtype
    )
