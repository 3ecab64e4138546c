"""Convolutions of a graph, whichever ATen overload they came as."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from opara_server.engine.rewrites.edit import arguments, aten, value


@dataclass(frozen=True)
class Convolution:
    """A 2-D convolution that is not transposed: ``x`` [N, C, H, W], ``weight`` [O, C / groups, h, w], ``bias`` [O]."""

    node: Node
    x: Node
    weight: Node
    bias: Node | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Stride, padding, dilation and groups, as ATen takes them after the bias."""
        return list(self.stride), list(self.padding), list(self.dilation), self.groups


def convolution(node: object) -> Convolution | None:
    """``node`` as a convolution; None for anything else, and for padding="same" that differs from side to side."""
    if not isinstance(node, Node) or node.target not in {
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.convolution.default,
    }:
        return None
    given = arguments(node)
    if given.get("transposed") or value(node).dim() != 4 or value(given["weight"]).dim() != 4:
        return None
    stride, dilation = _pair(given["stride"]), _pair(given["dilation"])
    if given["padding"] == "same":
        reach = [d * (size - 1) for d, size in zip(dilation, value(given["weight"]).shape[2:], strict=True)]
        if any(r % 2 for r in reach):
            return None
        padding = (reach[0] // 2, reach[1] // 2)
    else:
        padding = (0, 0) if given["padding"] == "valid" else _pair(given["padding"])
    return Convolution(node, given["input"], given["weight"], given["bias"], stride, padding, dilation, given["groups"])


def _pair(given: int | list[int]) -> tuple[int, int]:
    if isinstance(given, int):
        return given, given
    return (given[0], given[-1])
