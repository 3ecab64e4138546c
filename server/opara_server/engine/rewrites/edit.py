"""Reading and changing a functional ATen graph; what every rewrite needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

aten = torch.ops.aten


def calls(module: GraphModule, *targets: object) -> Iterator[Node]:
    """The graph's calls of one of ``targets``, in order; those that the loop's body adds are not among them."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in targets:
            yield node


def arguments(node: Node) -> dict[str, Any]:
    """What an ATen call is given, by the names of its schema, defaults included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    given = dict(node.kwargs)
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            given[argument.name] = node.args[position]
        elif argument.name not in given:
            given[argument.name] = argument.default_value
    return given


def value(node: Node) -> Tensor:
    """The fake tensor that stands for the node's result: its shape, strides, dtype and device."""
    result = node.meta["val"]
    assert isinstance(result, Tensor)
    return result


def only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def is_result(node: Node) -> bool:
    """Whether the module returns it. Such a tensor must be one of its own, not a part or a view of others."""
    return any(user.op == "output" for user in node.users)


def constant(module: GraphModule, node: object) -> Tensor | None:
    """The weight that ``node`` stands for; None for anything else, and for a weight that the program writes to."""
    if not isinstance(node, Node) or node.op != "get_attr" or any(_writes(user, node) for user in node.users):
        return None
    found = attrgetter(str(node.target))(module)
    return found.detach() if isinstance(found, Tensor) else None


def _writes(user: Node, node: Node) -> bool:
    """In a functional graph only a direct user can write."""
    if not isinstance(user.target, torch._ops.OpOverload):
        return False
    written = [a.name for a in user.target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    given = arguments(user) if written else {}
    return any(given[name] is node for name in written)


def is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


class Insert:
    """Adds nodes to ``module`` before the node ``at``, with the metadata of an exported graph."""

    def __init__(self, module: GraphModule, at: Node) -> None:
        self._module = module
        self._at = at

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A call whose fake result is computed here and now: wrong shapes fail at once."""
        with self._module.graph.inserting_before(self._at):
            node = self._module.graph.call_function(target, args, kwargs)
        fake_args, fake_kwargs = map_arg((args, kwargs), lambda argument: argument.meta["val"])
        with _fake_mode(self._module):
            node.meta = {**self._origin(), "val": target(*fake_args, **fake_kwargs)}
        return node

    def constant(self, name: str, tensor: Tensor) -> Node:
        """A new buffer of the module with a name that starts with ``name``."""
        unique = next(f"{name}_{i}" for i in count() if not hasattr(self._module, f"{name}_{i}"))
        self._module.register_buffer(unique, tensor, persistent=False)
        with self._module.graph.inserting_before(self._at):
            node = self._module.graph.get_attr(unique)
        node.meta = {**self._origin(), "val": self._fake(tensor)}
        return node

    def memory(self, like: Tensor, order: Sequence[int]) -> Node:
        """For a tensor like this, in the one form whose strides Inductor does not choose again. ``order``: its
        dimensions from the outermost to the innermost."""
        kind = {"dtype": like.dtype, "device": like.device}
        return self.call(aten.empty_permuted.default, list(like.shape), list(order), **kind)

    def _origin(self) -> dict[str, Any]:
        return {key: self._at.meta[key] for key in ("stack_trace", "nn_module_stack") if key in self._at.meta}

    def _fake(self, tensor: Tensor) -> Tensor:
        fake: Tensor = _fake_mode(self._module).from_tensor(tensor, static_shapes=True)
        return fake


def refresh(module: GraphModule) -> None:
    """Tell every call's result anew, after a change of strides or shapes that goes on through the graph.

    A call whose arguments are more than tensors and numbers (a subgraph) keeps what it has; so does one that PyTorch
    cannot run without contents (recurrent layers look for their weights' addresses), if nothing that it reads changed.
    """
    changed: set[Node] = set()
    with _fake_mode(module):
        for node in module.graph.nodes:
            if node.op != "call_function" or not all("val" in source.meta for source in node.all_input_nodes):
                continue
            args, kwargs = map_arg((node.args, node.kwargs), lambda argument: argument.meta["val"])
            try:
                told = node.target(*args, **kwargs)
            except RuntimeError:
                if changed.intersection(node.all_input_nodes):
                    raise
                continue
            if _forms(told) != _forms(node.meta.get("val")):
                changed.add(node)
            node.meta["val"] = told


def _forms(result: Any) -> list[Any]:
    leaves = pytree.tree_leaves(result)
    return [(leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _fake_mode(module: GraphModule) -> Any:
    """In which tensors have no content: also those that a call makes of nothing."""
    values = (node.meta.get("val") for node in module.graph.nodes)
    return next(known.fake_mode for known in values if isinstance(known, FakeTensor))


def tidy(module: GraphModule) -> None:
    """Drop calls without users and weights that no call reads; make the module run its changed graph."""
    module.graph.eliminate_dead_code()
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)
    module.graph.lint()
    module.recompile()
