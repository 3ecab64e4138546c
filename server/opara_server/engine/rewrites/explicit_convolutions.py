"""Convolutions that write their results where they are told: into planned memory, or into a concatenation's channels.

A concatenation of channels then costs nothing: no kernel, and no step on the way from its parts to its readers. It must
be of such convolutions alone, which nothing else reads: a kernel of Inductor's that wrote the remaining channels would
seem to touch all of them, and the convolutions would wait for it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from opara_server.engine.rewrites.conv_epilogues import channels_last
from opara_server.engine.rewrites.convolution_layer import Form, Layer, form
from opara_server.engine.rewrites.convolution_operator import CONVOLUTION
from opara_server.engine.rewrites.convolution_plans import Choice, fastest
from opara_server.engine.rewrites.convolutions import Convolution, convolution
from opara_server.engine.rewrites.edit import (
    Insert,
    arguments,
    aten,
    calls,
    constant,
    is_channels_last,
    only_user,
    value,
)
from opara_server.engine.rewrites.operators import CONVOLUTION_RELU
from opara_server.engine.rewrites.weights import Weights

log = logging.getLogger(__name__)

CONVOLUTIONS = (CONVOLUTION_RELU, aten.conv2d.default, aten.conv2d.padding, aten.convolution.default)
CAT_US = 2.0  # what a concatenation costs at least: a small kernel, and that it waits for its parts
SMALL_US = 2.0  # what any other kernel in a branch takes
COMPANY = 3  # in NASNet's graph at batch 1 2.7 kernels run at a time, on average
ALIGNED = 16  # bytes: where each part of a concatenation begins, as cuDNN wants its tensors to
CHANNELS_LAST = [0, 2, 3, 1]  # the dimensions from the outermost to the innermost


@dataclass(frozen=True)
class Explicit:
    """The convolution ``node`` as ``opara::convolution`` computes it: its operands but for plan and result.

    ``together``: its plan is the fastest with as many at once.
    """

    node: Node
    x: Node
    weight: Tensor
    bias: Tensor | None
    residual: Node | None
    geometry: tuple[list[int], list[int], list[int], int]
    relu: bool
    together: int = 1

    def apart(self, *, compiled: bool = True) -> Choice | None:
        """The plan with which it has its result for itself. Without ``compiled``, of those that are ready."""
        return self._fastest(form(value(self.node)), compiled)

    def inside(self, whole: Tensor) -> Choice | None:
        """The plan with which it writes some of the channels of ``whole``."""
        return self._fastest(form(whole[:, : value(self.node).shape[1]]), True)

    def _fastest(self, out: Form, compiled: bool) -> Choice | None:
        x = value(self.x)
        layer = Layer(
            device=x.device,
            dtype=x.dtype,
            x=form(x),
            weight=form(channels_last(self.weight)),
            residual=None if self.residual is None else form(value(self.residual)),
            out=out,
            biased=self.bias is not None,
            geometry=tuple(tuple(pair) for pair in self.geometry[:3]),
            relu=self.relu,
        )
        tf32 = torch.backends.cudnn.allow_tf32
        return fastest(layer, compiled=compiled, tf32=tf32, together=self.together)

    def insert(self, module: GraphModule, weights: Weights, plan: str, out: Node) -> None:
        """Before the node that it stands for."""
        insert = Insert(module, self.node)
        weight = insert.constant("conv_weight", weights.derive(channels_last, self.weight))
        bias = None if self.bias is None else insert.constant("conv_bias", self.bias)
        insert.call(CONVOLUTION, self.x, weight, bias, self.residual, *self.geometry, self.relu, plan, out)


def explicit_convolutions(module: GraphModule, weights: Weights, together: int = 1) -> int:
    """Returns how many convolutions write where they are told. Their weights must be constants and their operands
    channels_last; on a GPU cuDNN must have a plan for them: the fastest one with as many at once is taken."""
    _flatten(module)
    count = sum(_join(module, weights, cat, together) for cat in calls(module, aten.cat.default))
    for node in calls(module, *CONVOLUTIONS):
        found = _explicit(module, node, together)
        choice = None if found is None else found.apart()
        if found is None or choice is None:
            continue
        buffer = Insert(module, node).memory(value(node), CHANNELS_LAST)
        found.insert(module, weights, choice.plan, buffer)
        node.replace_all_uses_with(buffer)
        count += 1
    return count


def convolutions_in_company(module: GraphModule, weights: Weights) -> int:
    """As ``explicit_convolutions``, for graphs in which several convolutions run at most times."""
    return explicit_convolutions(module, weights, COMPANY)


def _flatten(module: GraphModule) -> None:
    """Concatenations of channels that only another one reads: it joins their parts itself."""
    for cat in calls(module, aten.cat.default):
        user = only_user(cat)
        if _joins_channels(cat) and user is not None and _joins_channels(user):
            given = arguments(user)["tensors"]
            parts = [inner for part in given for inner in (arguments(cat)["tensors"] if part is cat else [part])]
            user.args, user.kwargs = (parts, 1), {}
            module.graph.erase_node(cat)


def _joins_channels(node: Node) -> bool:
    return node.target is aten.cat.default and value(node).dim() == 4 and arguments(node)["dim"] in {1, -3}


def _join(module: GraphModule, weights: Weights, cat: Node, together: int) -> int:
    """Returns how many convolutions write into what was ``cat``: all of its parts, or none."""
    parts, whole = arguments(cat)["tensors"], value(cat)
    if not _joins_channels(cat) or not is_channels_last(whole):
        return 0
    if any(only_user(part) is not cat or value(part).dtype != whole.dtype for part in parts):
        return 0
    begins = list(accumulate((value(part).shape[1] for part in parts), initial=0))
    if any(begin * whole.element_size() % ALIGNED for begin in begins):
        return 0
    found = [explicit for part in parts if (explicit := _explicit(module, part, together)) is not None]
    plans = _plans(module, found, whole) if len(found) == len(parts) else None
    if plans is None:
        return 0
    first = next(node for node in module.graph.nodes if node in parts)
    buffer = Insert(module, first).memory(whole, CHANNELS_LAST)
    for explicit, plan, begin, end in zip(found, plans, begins, begins[1:], strict=False):
        slot = Insert(module, explicit.node).call(aten.slice.Tensor, buffer, 1, begin, end)
        explicit.insert(module, weights, plan, slot)
    cat.replace_all_uses_with(buffer)
    for node in dict.fromkeys((cat, *parts)):
        module.graph.erase_node(node)
    return len(parts)


def _plans(module: GraphModule, parts: list[Explicit], whole: Tensor) -> list[str] | None:
    """Per part the plan with which it writes into ``whole``, where all are there sooner than by concatenation: some may
    be slower, as long as those that come last are not. Apart: by what is ready; what is compiled is as fast inside."""
    apart = [part.apart(compiled=False) for part in parts]
    if None in apart:
        return None
    inside = [part.inside(whole) for part in parts]
    log.info("apart %s, inside %s", *([choice and round(choice.us, 2) for choice in side] for side in (apart, inside)))
    if None in inside:
        return None
    before = [_chain_us(module, part.x, part.together) for part in parts]
    apart_us, inside_us = (
        max(us + choice.us for us, choice in zip(before, filter(None, side), strict=True)) for side in (apart, inside)
    )
    return [choice.plan for choice in inside if choice] if inside_us <= apart_us + CAT_US else None


def _chain_us(module: GraphModule, node: Node, together: int) -> float:
    """How long it takes from where the branch begins, a tensor that others read, too, until ``node`` is there."""
    us = 0.0
    while only_user(node) is not None and node.all_input_nodes:
        explicit = _explicit(module, node, together)
        choice = None if explicit is None else explicit.apart()
        us += SMALL_US if choice is None else choice.us
        node = node.all_input_nodes[0]
    return us


def _explicit(module: GraphModule, node: Node, together: int) -> Explicit | None:
    """``node``, where it is a convolution of constant weights and all of its tensors are channels_last."""
    if node.target is CONVOLUTION_RELU:
        found = _fused(module, node)
    elif (conv := convolution(node)) is not None and conv.groups == 1:
        found = _alone(module, conv)
    else:
        return None
    if found is None:
        return None
    images = [node, found.x, *([] if found.residual is None else [found.residual])]
    return replace(found, together=together) if all(is_channels_last(value(image)) for image in images) else None


def _fused(module: GraphModule, node: Node) -> Explicit | None:
    given = arguments(node)
    weight, bias = constant(module, given["weight"]), constant(module, given["bias"])
    if weight is None or bias is None:
        return None
    geometry = (given["stride"], given["padding"], given["dilation"], given["groups"])
    return Explicit(node, given["x"], weight, bias, given["residual"], geometry, relu=True)


def _alone(module: GraphModule, conv: Convolution) -> Explicit | None:
    weight, bias = constant(module, conv.weight), constant(module, conv.bias)
    if weight is None or (bias is None and conv.bias is not None):
        return None
    return Explicit(conv.node, conv.x, weight, bias, None, conv.geometry, relu=False)
