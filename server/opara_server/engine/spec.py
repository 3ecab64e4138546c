"""What a model takes and gives: names, element types and shapes without the batch dimension. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

ELEMENT_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """``shape`` is one row's, without the batch dimension. ``low`` <= random test values < ``high``; None: standard
    normal for floats, 0 and 1 for integers."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ELEMENT_BYTES:
            raise ValueError(f"{self.name}: dtype {self.dtype!r} is not one of {', '.join(ELEMENT_BYTES)}")
        if any(size < 0 for size in self.shape):
            raise ValueError(f"{self.name}: negative size in shape {list(self.shape)}")

    @property
    def padding(self) -> float:
        """A valid value for rows that nobody asked for."""
        return 0 if self.low is None or self.high is None or self.low <= 0 < self.high else self.low

    @property
    def row_bytes(self) -> int:
        return prod(self.shape) * ELEMENT_BYTES[self.dtype]
