"""A tensor that is padded for a convolution or a max pooling: they pad by themselves, without a kernel of its own."""

from __future__ import annotations

from math import inf

from torch.fx import GraphModule, Node

from opara_server.engine.rewrites.convolutions import convolution
from opara_server.engine.rewrites.edit import Insert, arguments, aten, calls
from opara_server.engine.rewrites.weights import Weights


def fold_padding(module: GraphModule, _weights: Weights) -> int:
    """Returns how many calls pad by themselves now. Only where both sides of a dimension are padded alike."""
    count = 0
    for pad in calls(module, aten.pad.default, aten.constant_pad_nd.default):
        if (border := _border(pad)) is None:
            continue
        for user in list(pad.users):
            new = _padded(module, pad, user, border, arguments(pad)["value"] or 0.0)
            if new is not None:
                user.replace_all_uses_with(new)
                module.graph.erase_node(user)
                count += 1
    return count


def _border(pad: Node) -> tuple[int, int] | None:
    """Rows and columns added on either side of the last two dimensions."""
    given = arguments(pad)
    if given.get("mode", "constant") != "constant" or len(given["pad"]) != 4:
        return None
    left, right, top, bottom = given["pad"]
    return (top, left) if left == right >= 0 and top == bottom >= 0 else None


def _padded(module: GraphModule, pad: Node, user: Node, border: tuple[int, int], number: float) -> Node | None:
    x = arguments(pad)["self"]
    insert = Insert(module, user)
    if number == 0 and (conv := convolution(user)) is not None and conv.x is pad:
        padding = _sum(conv.padding, border)
        return insert.call(
            aten.conv2d.default, x, conv.weight, conv.bias, list(conv.stride), padding, list(conv.dilation), conv.groups
        )
    if number == -inf and user.target is aten.max_pool2d.default:
        given = arguments(user)
        kernel, padding = given["kernel_size"], _sum(given["padding"], border)
        refused = any(2 * p > k for p, k in zip(padding, [kernel[0], kernel[-1]], strict=True))  # by PyTorch
        if refused or given["ceil_mode"]:  # then a last window may begin in the padding, but not in a pooling's own
            return None
        return insert.call(user.target, x, kernel, given["stride"], padding, given["dilation"])
    return None


def _sum(own: object, border: tuple[int, int]) -> list[int]:
    pair = [own, own] if isinstance(own, int) else list(own)  # type: ignore[call-overload]
    return [int(pair[0]) + border[0], int(pair[-1]) + border[1]]
