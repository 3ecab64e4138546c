"""Exported program → the graph that the rewrites work on."""

from __future__ import annotations

from operator import getitem

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from opara_server.engine.calls import CHECKS, DETACHES, source_line
from opara_server.engine.errors import LoweringError
from opara_server.engine.rewrites.edit import aten, tidy, value

COPIES = {aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default}
VIEWS = {aten.view.default, aten._unsafe_view.default}  # fail where a rewrite changes strides; a reshape does not


def functional(exported: ExportedProgram) -> GraphModule:
    """The program's module with in-place calls replaced, without checks of what an export has settled, and without
    copies that change nothing: dropout of a model in eval mode is one. Its weights are the program's own tensors.

    Raises LoweringError for the writes that PyTorch is known to replace wrongly.
    """
    for node in exported.graph.nodes:
        if _odd_write(node):
            raise LoweringError(
                f"{node.target} changes a list of tensors, or an input's shape, in place", source_line(node)
            )
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


def _odd_write(node: Node) -> bool:
    """In torch 2.13 a tensor that is twice in a list changes once, and an input's new shape is lost."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    written = [a for a in target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if any(str(argument.type).startswith("List") for argument in written):
        return True
    shapes = torch.Tag.inplace_view in target.tags and target.overloadpacket not in DETACHES
    return shapes and any(source.op == "placeholder" for source in node.all_input_nodes)


def _idle(copy: Node) -> bool:
    """Copies of inputs and weights stay: an output must not be a view of one, and a program may write to them."""
    source = copy.args[0]
    return (
        isinstance(source, Node)
        and _owner(source).op == "call_function"
        and value(source).stride() == value(copy).stride()
        and value(source).dtype == value(copy).dtype
    )


def _owner(node: Node) -> Node:
    """Whose memory ``node`` is a view of."""
    while node.target is getitem or _is_view(node.target):
        node = node.all_input_nodes[0]
    return node


def _is_view(target: object) -> bool:
    return isinstance(target, torch._ops.OpOverload) and any(r.alias_info is not None for r in target._schema.returns)
