"""Channel counts become multiples of what cuDNN wants, once in the graph instead of by kernels of its own on each call.

Weights and biases are padded with zeros at load; what no convolution has made, the module's images above all, by one
kernel each. The activations carry the further channels along through whatever treats channels one by one, until
something needs the model's own channels and takes a view of them.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from opara_server.engine.rewrites.channels import Wide, keeps_channels, same, widened
from opara_server.engine.rewrites.convolutions import Convolution, convolution
from opara_server.engine.rewrites.edit import Insert, arguments, aten, constant, is_channels_last, is_result, value
from opara_server.engine.rewrites.weights import Weights

ALIGNED_BYTES = 16  # 8 channels of float16 or bfloat16, 4 of float32


def pad_channels(module: GraphModule, weights: Weights) -> int:
    """Returns how many convolutions are padded. Only in channels_last layout, and where the weights are known."""
    padding = _Padding(module, weights)
    for node in list(module.graph.nodes):
        padding.visit(node)
    return padding.count


class _Padding:
    """One walk over the graph. Wide calls come to stand before the calls that they replace; those that nobody needs any
    more have no users in the end."""

    def __init__(self, module: GraphModule, weights: Weights) -> None:
        self._module = module
        self._weights = weights
        self._wide: dict[Node, Wide] = {}
        self._entered: dict[Node, Wide] = {}
        self._real: dict[Node, Node] = {}
        self._wanted = _wanted(module)
        self.count = 0

    def visit(self, node: Node) -> None:
        insert = Insert(self._module, node)
        if (conv := _paddable(self._module, node)) is not None:
            new = self._convolution(insert, conv)
            self.count += new is not None
        else:
            new = widened(insert, node, self._wide) if node in self._wanted else None
        if new is None:
            self._give_real(insert, node)
        elif new.dense and new.width == value(node).shape[1]:
            node.replace_all_uses_with(new.node)
        else:
            self._wide[node] = new

    def _convolution(self, insert: Insert, conv: Convolution) -> Wide | None:
        inputs = value(conv.x).shape[1]
        source = self._wide.get(conv.x) or self._entered_by(insert, conv) or same(conv.x)
        if conv.groups > 1:
            outputs, slots, groups = source.width, source.slots, source.width
        else:
            count = int(value(conv.weight).shape[0])
            outputs, slots, groups = _aligned(conv.x, count), tuple(range(count)), 1
        if (source.width, outputs) == (inputs, len(slots)):
            return None
        weight, bias = constant(self._module, conv.weight), constant(self._module, conv.bias)
        columns = ((0,), 1) if conv.groups > 1 else (source.slots, source.width)
        padded = self._weights.derive(_padded_weight, weight, (slots, outputs), columns)
        new_bias = None if bias is None else self._weights.derive(_spread, bias, 0, slots, outputs)
        return Wide(
            insert.call(
                aten.conv2d.default,
                source.node,
                insert.constant("padded_weight", padded),
                None if new_bias is None else insert.constant("padded_bias", new_bias),
                *conv.geometry[:3],
                groups,
            ),
            slots,
        )

    def _entered_by(self, insert: Insert, conv: Convolution) -> Wide | None:
        """What ``conv`` reads, padded by a kernel of its own; None where it needs none."""
        channels = int(value(conv.x).shape[1])
        missing = _aligned(conv.x, channels) - channels
        if not missing or conv.groups > 1:
            return None
        if conv.x not in self._entered:
            padded = insert.call(aten.constant_pad_nd.default, conv.x, [0, 0, 0, 0, 0, missing], 0)
            self._entered[conv.x] = Wide(padded, tuple(range(channels)))
        return self._entered[conv.x]

    def _give_real(self, insert: Insert, node: Node) -> None:
        """The model's own channels for a call that needs them; outputs of the module as tensors, not views."""
        if not any(source in self._wide for source in node.all_input_nodes):
            return
        node.args, node.kwargs = map_arg((node.args, node.kwargs), partial(self._narrowed, insert))
        if node.op == "output":
            node.args = map_arg(node.args, lambda result: _copy(insert, result, self._real))

    def _narrowed(self, insert: Insert, node: Node) -> Node:
        if (wide := self._wide.get(node)) is None:
            return node
        if node not in self._real:
            if wide.dense:
                part = insert.call(aten.slice.Tensor, wide.node, 1, 0, len(wide.slots))
            elif node.target is aten.cat.default:
                part = insert.call(aten.cat.default, [self._narrowed(insert, p) for p in arguments(node)["tensors"]], 1)
            else:
                index = torch.tensor(wide.slots, device=value(node).device)
                part = insert.call(aten.index_select.default, wide.node, 1, insert.constant("channels", index))
            self._real[node] = part
        return self._real[node]


def _copy(insert: Insert, result: Node, real: dict[Node, Node]) -> Node:
    if result not in real.values():
        return result
    return insert.call(aten.clone.default, result, memory_format=torch.channels_last)


def _wanted(module: GraphModule) -> set[Node]:
    """Calls on whose way to a convolution channels are treated one by one."""
    wanted: set[Node] = set()
    for node in reversed(module.graph.nodes):
        on_the_way = node.op == "call_function" and keeps_channels(node) and any(user in wanted for user in node.users)
        if on_the_way or _paddable(module, node) is not None:
            wanted.add(node)
    return wanted


def _paddable(module: GraphModule, node: Node) -> Convolution | None:
    """A convolution of all channels or of each by itself, with known weights, whose result is none of the module's."""
    conv = convolution(node)
    if conv is None or not is_channels_last(value(node)) or is_result(node):
        return None
    weight = constant(module, conv.weight)
    if weight is None or (conv.bias is not None and constant(module, conv.bias) is None):
        return None
    depthwise = conv.groups == value(conv.x).shape[1] == weight.shape[0]
    return conv if conv.groups == 1 or depthwise else None


def _aligned(node: Node, channels: int) -> int:
    multiple = max(4, ALIGNED_BYTES // value(node).element_size())
    return -(-channels // multiple) * multiple


def _padded_weight(weight: Tensor, rows: tuple[tuple[int, ...], int], columns: tuple[tuple[int, ...], int]) -> Tensor:
    """Zeros but for the outputs and inputs, given by their places and the number of all."""
    padded = _spread(_spread(weight, 1, *columns), 0, *rows)
    return padded.contiguous(memory_format=torch.channels_last)


def _spread(tensor: Tensor, dim: int, slots: tuple[int, ...], width: int) -> Tensor:
    shape = [*tensor.shape[:dim], width, *tensor.shape[dim + 1 :]]
    return tensor.new_zeros(shape).index_copy(dim, torch.tensor(slots, device=tensor.device), tensor)
