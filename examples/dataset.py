"""The handwritten digits that come with scikit-learn, split once and for all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 20231216


@dataclass(frozen=True)
class Digits:
    """``images``: float32 [n, 1, 8, 8] in 0..1; ``labels``: int64 [n]."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def training_and_held_out() -> tuple[Digits, Digits]:
    """Four fifths to train on and the fifth (360 images) that training never sees, each digit in equal shares."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)  # pixels count from 0 to 16
    split = train_test_split(images, labels.astype(np.int64), test_size=0.2, random_state=SEED, stratify=labels)
    train_images, test_images, train_labels, test_labels = split
    return Digits(train_images, train_labels), Digits(test_images, test_labels)
