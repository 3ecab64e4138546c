"""Kinds of values of command line options, for argparse's ``type``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def each(parse: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Several, with commas between them."""

    def parse_each(text: str) -> tuple[T, ...]:
        return tuple(parse(part) for part in text.split(","))

    parse_each.__name__ = "list of numbers"  # argparse names it where int() fails
    return parse_each


def number(accepts: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    """``wanted``: what ``accepts`` accepts, in words."""

    def parse(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and accepts(value)):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")
        return value

    parse.__name__ = "number"
    return parse


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return value


positive = number(lambda value: value > 0, "a number above 0")
not_negative = number(lambda value: value >= 0, "a number not below 0")
