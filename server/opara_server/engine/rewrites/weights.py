"""Tensors that rewrites compute from a model's weights, each computed and kept once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class Weights:
    """Results by what they were computed from, so that all programs of one model, a bucket each, share them.

    Weights are told apart by their memory, not by their content: they must not change while this object lives. It keeps
    what it read and what it made alive; drop it once the model's last program is rewritten.
    """

    def __init__(self) -> None:
        self._made: dict[object, tuple[Any, Any]] = {}

    def derive(self, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``make(*args, **kwargs)``, called once. ``make``: a pure function that lives as long as its module."""
        key = (make, _identity(args), _identity(kwargs))
        if key not in self._made:
            self._made[key] = ((args, kwargs), make(*args, **kwargs))
        return self._made[key][1]


def _identity(value: Any) -> object:
    if isinstance(value, Tensor):
        memory = value.data_ptr() if value.numel() else 0
        bits = value.is_conj(), value.is_neg()
        return ("tensor", memory, value.shape, value.stride(), value.dtype, value.device, bits)
    if isinstance(value, (list, tuple)):
        return tuple(_identity(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, _identity(value[name])) for name in sorted(value))
    return (type(value), value)  # 1, 1.0 and True are equal, what they make is not
