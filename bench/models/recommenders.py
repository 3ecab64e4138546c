"""Recommenders: many small look-ups side by side, then a few matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

HISTORY = 50  # items that a user has looked at


class DeepFM(nn.Module):
    """DeepFM (Guo et al., 2017) over 26 categorical fields, as in Criteo: first order, factorisation machine, MLP."""

    def __init__(self, fields: int = 26, vocabulary: int = 10_000, dim: int = 16, hidden: int = 400) -> None:
        super().__init__()
        self.weights = nn.ModuleList(nn.Embedding(vocabulary, 1) for _ in range(fields))
        self.factors = nn.ModuleList(nn.Embedding(vocabulary, dim) for _ in range(fields))
        self.deep = _mlp([fields * dim, hidden, hidden, hidden])
        self.head = nn.Linear(hidden, 1)
        for weight in self.factors.parameters():
            nn.init.normal_(weight, std=0.1)  # PyTorch's unit variance would saturate the sigmoid

    def forward(self, ids: Tensor) -> Tensor:
        columns = ids.unbind(1)
        first = torch.cat([weight(c) for weight, c in zip(self.weights, columns, strict=True)], 1).sum(1, keepdim=True)
        factors = [factor(c) for factor, c in zip(self.factors, columns, strict=True)]
        stacked = torch.stack(factors, 1)
        pairs = 0.5 * (stacked.sum(1).square() - stacked.square().sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(first + pairs + self.head(self.deep(torch.cat(factors, 1))))


class TwoTower(nn.Module):
    """Two towers (Covington et al., 2016; Yi et al., 2019): a user and an item as unit vectors, and their product.

    ``user``: [rows, fields + HISTORY] ids, the fields' first, then items the user has looked at.
    ``item``: [rows, fields].
    """

    def __init__(self, fields: int = 8, vocabulary: int = 10_000, dim: int = 32) -> None:
        super().__init__()
        self.fields = fields
        self.user_fields = nn.ModuleList(nn.Embedding(vocabulary, dim) for _ in range(fields))
        self.item_fields = nn.ModuleList(nn.Embedding(vocabulary, dim) for _ in range(fields))
        self.history = nn.Embedding(vocabulary, dim)
        self.user_tower = _mlp([(fields + 1) * dim, 512, 256, 128])
        self.item_tower = _mlp([fields * dim, 512, 256, 128])

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        seen = self.history(user[:, self.fields :]).mean(1)
        of_user = torch.cat([*_look_up(self.user_fields, user[:, : self.fields]), seen], 1)
        of_item = torch.cat(_look_up(self.item_fields, item), 1)
        return (normalize(self.user_tower(of_user)) * normalize(self.item_tower(of_item))).sum(1, keepdim=True)


def _look_up(tables: nn.ModuleList, ids: Tensor) -> list[Tensor]:
    return [table(column) for table, column in zip(tables, ids.unbind(1), strict=True)]


def _mlp(sizes: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(*(part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())))
