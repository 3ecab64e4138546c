"""A randomly wired network (Xie et al., "Exploring Randomly Wired Neural Networks for Image Recognition", 2019)."""

from __future__ import annotations

import networkx
import torch
from torch import Tensor, nn

NODES = 32  # per stage
NEIGHBOURS, REWIRED = 4, 0.75  # WS(4, 0.75): the generator that the paper found best


def wiring(seed: int) -> list[list[int]]:
    """Per node the nodes it takes its input from: a Watts-Strogatz graph, each edge from the lower to the higher node.

    Nodes without a source take the stage's input.
    """
    graph = networkx.connected_watts_strogatz_graph(NODES, NEIGHBOURS, REWIRED, seed=seed)
    return [sorted(other for other in graph.neighbors(node) if other < node) for node in range(NODES)]


class Node(nn.Module):
    """Weighted sum of what comes in, ReLU, separable 3x3 convolution, batch norm."""

    def __init__(self, sources: int, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(sources)) if sources > 1 else None
        self.block = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False),
            nn.Conv2d(channels_in, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, incoming: list[Tensor]) -> Tensor:
        total = incoming[0]
        if self.weights is not None:
            shares = torch.sigmoid(self.weights).unbind()
            total = incoming[0] * shares[0]
            for tensor, share in zip(incoming[1:], shares[1:], strict=True):
                total = total + tensor * share
        result: Tensor = self.block(total)
        return result


class Stage(nn.Module):
    """A random graph of nodes at half the resolution of its input; its output is the mean of the nodes nobody reads."""

    def __init__(self, seed: int, channels_in: int, channels: int) -> None:
        super().__init__()
        self.sources = wiring(seed)
        self.nodes = nn.ModuleList(
            Node(len(sources), channels, channels, 1) if sources else Node(1, channels_in, channels, 2)
            for sources in self.sources
        )
        read = {source for sources in self.sources for source in sources}
        self.last = [node for node in range(NODES) if node not in read]

    def forward(self, x: Tensor) -> Tensor:
        done: list[Tensor] = []
        for node, sources in zip(self.nodes, self.sources, strict=True):
            done.append(node([done[source] for source in sources] or [x]))
        return torch.stack([done[node] for node in self.last]).mean(0)


class RandWire(nn.Module):
    """The small regime: three random stages of 32 nodes, 78 channels in the first. Input [rows, 3, 224, 224]."""

    def __init__(self, channels: int = 78, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels // 2, 3, 2, 1, bias=False),
            nn.BatchNorm2d(channels // 2),
            nn.ReLU(),
            nn.Conv2d(channels // 2, channels, 3, 2, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.stages = nn.Sequential(
            Stage(1, channels, channels), Stage(2, channels, 2 * channels), Stage(3, 2 * channels, 4 * channels)
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(4 * channels, 1280, 1, bias=False),
            nn.BatchNorm2d(1280),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(1280, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(self.stem(x)))
        return logits
