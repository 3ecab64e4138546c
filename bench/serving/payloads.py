"""What is sent, and what must come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from bench.serving.models.modules import mlp

Floats = NDArray[np.float32]
_MODULE = mlp()


@dataclass(frozen=True)
class Payload:
    """One request: a row of ``shape`` for the model ``name``. ``answer``: of [1, *shape], what is right."""

    name: str
    shape: tuple[int, ...]
    answer: Callable[[Floats], Floats]

    @property
    def input_bytes(self) -> int:
        return 4 * prod(self.shape)

    def draw(self, random: np.random.Generator) -> Floats:
        """Float32 [1, *shape], never the same again."""
        return random.standard_normal((1, *self.shape), dtype=np.float32)


def _same(x: Floats) -> Floats:
    return x


def _mlp(x: Floats) -> Floats:
    with torch.inference_mode():
        y: Floats = _MODULE(torch.from_numpy(x))["y"].numpy()
    return y


PAYLOADS = {
    payload.name: payload
    for payload in (
        Payload("tiny", (16,), _same),
        Payload("image", (3, 224, 224), _same),
        Payload("mlp", (784,), _mlp),
    )
}
