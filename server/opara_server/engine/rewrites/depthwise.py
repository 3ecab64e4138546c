"""[bias →] [ReLU →] [padding →] depthwise convolution [→ ReLU]: one kernel of ours instead of up to four."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from opara_server.engine.rewrites.convolutions import Convolution, convolution
from opara_server.engine.rewrites.depthwise_operator import DEPTHWISE
from opara_server.engine.rewrites.edit import Insert, arguments, aten, constant, is_channels_last, only_user, value
from opara_server.engine.rewrites.weights import Weights

DTYPES = {torch.float16, torch.bfloat16, torch.float32}
PADS = {aten.pad.default, aten.constant_pad_nd.default}
MOST_TAPS = 49  # of a filter: the kernel is written out tap by tap
MOST_ELEMENTS = 2**31  # the kernel counts in 32 bits


@dataclass(frozen=True)
class _Layer:
    """A depthwise convolution and what the operator does besides. ``path``: the calls between ``x`` and it, the last
    first. ``padding``: above and to the left. ``end``: the call whose result the operator computes."""

    conv: Convolution
    x: Node
    path: tuple[Node, ...]
    padding: tuple[int, int]
    relu: bool
    end: Node


def depthwise(module: GraphModule, weights: Weights) -> int:
    """Returns how many depthwise convolutions are calls of ``opara::depthwise``. Only where their results are
    channels_last, and the weights known.

    A ReLU ahead is applied by each of those that read it, whether or not others need it, too: what it is applied to is
    there earlier. So is the bias of a convolution that only they read: Inductor adds it in a kernel of its own.
    """
    layers = [layer for node in module.graph.nodes if (layer := _layer(module, node)) is not None]
    shifted = _shifted(module, layers)
    made: dict[Node, Node] = {}  # in place of what layers have read
    for layer in layers:
        x_bias = None
        if layer.x in shifted:
            conv = convolution(layer.x)
            assert conv is not None
            x_bias = conv.bias
            if layer.x not in made:
                bare = Insert(module, layer.x)
                made[layer.x] = bare.call(aten.conv2d.default, conv.x, conv.weight, None, *conv.geometry)
        elif not is_channels_last(value(layer.x)) and layer.x not in made:
            insert = Insert(module, layer.conv.node)  # ahead of all that read it
            made[layer.x] = insert.call(aten.clone.default, layer.x, memory_format=torch.channels_last)
        made[layer.end] = _call(module, weights, layer, made.get(layer.x, layer.x), x_bias)
        layer.end.replace_all_uses_with(made[layer.end])
    return len(layers)


def _call(module: GraphModule, weights: Weights, layer: _Layer, x: Node, x_bias: Node | None) -> Node:
    insert, conv = Insert(module, layer.end), layer.conv
    biases = [constant(module, bias) for bias in (conv.bias, x_bias)]
    return insert.call(
        DEPTHWISE,
        x,
        insert.constant("depthwise_weight", weights.derive(_taps, constant(module, conv.weight))),
        *(None if b is None else insert.constant("depthwise_bias", weights.derive(_exact, b)) for b in biases),
        list(conv.stride),
        list(layer.padding),
        list(conv.dilation),
        list(value(conv.node).shape[2:]),
        layer.relu,
        layer.end is not conv.node,
    )


def _layer(module: GraphModule, node: Node) -> _Layer | None:
    conv = _depthwise(module, node)
    if conv is None:
        return None
    x, padding, relu = conv.x, conv.padding, False
    path: list[Node] = []
    while True:
        border = (0, 0) if _is_free_relu(module, x) else _border(x)
        if border is None:
            break
        padding = (padding[0] + border[0], padding[1] + border[1])
        relu = relu or x.target is aten.relu.default
        path.append(x)
        x = x.all_input_nodes[0]
    after = only_user(node)
    end = after if after is not None and after.target is aten.relu.default else node
    return _Layer(conv, x, tuple(path), padding, relu, end)


def _depthwise(module: GraphModule, node: Node) -> Convolution | None:
    conv = convolution(node)
    if conv is None or value(node).dtype not in DTYPES:
        return None
    weight = constant(module, conv.weight)
    if weight is None or (conv.bias is not None and constant(module, conv.bias) is None):
        return None
    images = [value(conv.x), value(node)]
    fits = (
        1 < conv.groups == weight.shape[0] == images[0].shape[1]
        and weight[0, 0].numel() <= MOST_TAPS
        and is_channels_last(images[1])
        and all(image.numel() < MOST_ELEMENTS for image in images)
    )
    return conv if fits else None


def _is_free_relu(module: GraphModule, node: Node) -> bool:
    """A ReLU, and not one that a depthwise convolution ahead of it takes along."""
    if node.target is not aten.relu.default:
        return False
    before = node.all_input_nodes[0]
    return only_user(before) is not node or _depthwise(module, before) is None


def _border(pad: Node) -> tuple[int, int] | None:
    """Rows of zeros above and columns of zeros to the left; None where the call is no padding with zeros."""
    if pad.target not in PADS:
        return None
    given = arguments(pad)
    plain = given.get("mode", "constant") == "constant" and not given["value"]
    if not plain or len(given["pad"]) != 4 or min(given["pad"]) < 0:
        return None
    left, _, top, _ = given["pad"]
    return top, left


def _shifted(module: GraphModule, layers: Sequence[_Layer]) -> set[Node]:
    """The convolutions that only layers read, through calls of their paths, and whose bias these can add."""
    inside = {step for layer in layers for step in _steps(layer)}
    whole = {layer.conv.node for layer in layers}

    def only_layers(node: Node) -> bool:
        return all((node, user) in inside and (user in whole or only_layers(user)) for user in node.users)

    sources = {layer.x: convolution(layer.x) for layer in layers if layer.x not in whole}
    known = {x for x, conv in sources.items() if conv is not None and constant(module, conv.bias) is not None}
    return {x for x in known if only_layers(x)}


def _steps(layer: _Layer) -> Iterable[tuple[Node, Node]]:
    way = [layer.conv.node, *layer.path, layer.x]
    return zip(way[1:], way, strict=False)


def _taps(weight: Tensor) -> Tensor:
    """[C, 1, h, w] as the operator's [h, w, C]."""
    return _exact(weight[:, 0].permute(1, 2, 0)).contiguous()


def _exact(weight: Tensor) -> Tensor:
    return weight.to(torch.float32)
