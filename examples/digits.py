"""A small branchy network for scikit-learn's handwritten digits: three Inception blocks of four branches each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 10


class ConvUnit(nn.Sequential):
    """Convolution, BatchNorm, ReLU; keeps height and width."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel_size, padding=kernel_size // 2, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        )


class InceptionBlock(nn.Module):
    """Four independent branches over the same input, concatenated: [n, channels_in, h, w] -> [n, 4 * width, h, w]."""

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__()
        self.point = ConvUnit(channels_in, width, 1)
        self.small = nn.Sequential(ConvUnit(channels_in, width, 1), ConvUnit(width, width, 3))
        self.large = nn.Sequential(
            ConvUnit(channels_in, width, 1), ConvUnit(width, width, 3), ConvUnit(width, width, 3)
        )
        self.pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), ConvUnit(channels_in, width, 1))

    def forward(self, features: Tensor) -> Tensor:
        branches = (self.point(features), self.small(features), self.large(features), self.pooled(features))
        return torch.cat(branches, dim=1)


class DigitsInception(nn.Module):
    """Reads grey images of 8 x 8 pixels, scaled to 0..1."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = ConvUnit(1, 2 * width, 3)
        self.first = InceptionBlock(2 * width, width)
        self.shrink = nn.MaxPool2d(2)
        self.second = InceptionBlock(4 * width, width)
        self.third = InceptionBlock(4 * width, width)
        self.head = nn.Linear(4 * width, CLASSES)

    def logits(self, image: Tensor) -> Tensor:
        """``image``: float32 [n, 1, 8, 8]; returns float32 [n, 10]."""
        features = self.shrink(self.first(self.stem(image)))
        features = self.third(self.second(features))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """``image``: float32 [n, 1, 8, 8]; returns ``probabilities`` float32 [n, 10] and ``digit`` int64 [n]."""
        logits = self.logits(image)
        return {"probabilities": logits.softmax(dim=1), "digit": logits.argmax(dim=1)}


def digits_inception() -> nn.Module:
    """The factory that ``models/digits/model.toml`` names; its weights lie beside that file."""
    return DigitsInception()
