"""How requests are spread over replicas: what proxies and clients really do, one class each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

import numpy as np

DRAWN = 1 << 16  # random numbers at a time


class Balancer(Protocol):
    """``pick``: the replica of the next request, which counts as in flight there until it has ``ended``."""

    def pick(self) -> int: ...

    def ended(self, replica: int) -> None: ...


class RoundRobin:
    """The next one, in turns: nginx, or one client of a name."""

    def __init__(self, replicas: int, _random: np.random.Generator) -> None:
        self._replicas = replicas
        self._next = -1

    def pick(self) -> int:
        self._next = (self._next + 1) % self._replicas
        return self._next

    def ended(self, replica: int) -> None:
        """It does not count."""


class Random:
    """Any: what comes of many clients that each take turns of their own."""

    def __init__(self, replicas: int, random: np.random.Generator) -> None:
        self._draw = _Draws(replicas, random)

    def pick(self) -> int:
        return self._draw.next()

    def ended(self, replica: int) -> None:
        """It does not count."""


class TwoChoices:
    """Of two drawn at random, which may be the same one, the less busy, of equals the first: Envoy's LEAST_REQUEST."""

    def __init__(self, replicas: int, random: np.random.Generator) -> None:
        self._draw = _Draws(replicas, random)
        self._in_flight = [0] * replicas

    def pick(self) -> int:
        first, second = self._draw.next(), self._draw.next()
        chosen = second if self._in_flight[second] < self._in_flight[first] else first
        self._in_flight[chosen] += 1
        return chosen

    def ended(self, replica: int) -> None:
        self._in_flight[replica] -= 1


class LeastLoaded:
    """The least busy of all, of equals the one that has been so for longest: HAProxy's leastconn."""

    def __init__(self, replicas: int, _random: np.random.Generator) -> None:
        self._in_flight = [0] * replicas
        self._levels: list[OrderedDict[int, None]] = [OrderedDict.fromkeys(range(replicas))]  # by requests in flight
        self._lowest = 0

    def pick(self) -> int:
        while not self._levels[self._lowest]:
            self._lowest += 1
        chosen, _ = self._levels[self._lowest].popitem(last=False)
        self._put(chosen, self._lowest + 1)
        return chosen

    def ended(self, replica: int) -> None:
        level = self._in_flight[replica]
        del self._levels[level][replica]
        self._put(replica, level - 1)
        self._lowest = min(self._lowest, level - 1)

    def _put(self, replica: int, level: int) -> None:
        if level == len(self._levels):
            self._levels.append(OrderedDict())
        self._levels[level][replica] = None
        self._in_flight[replica] = level


class _Draws:
    """Whole numbers below ``end``, many drawn at once."""

    def __init__(self, end: int, random: np.random.Generator) -> None:
        self._end, self._random = end, random
        self._left: list[int] = []

    def next(self) -> int:
        if not self._left:
            self._left = self._random.integers(self._end, size=DRAWN).tolist()
        return self._left.pop()


BALANCERS: Mapping[str, type[RoundRobin | Random | TwoChoices | LeastLoaded]] = {
    "least-loaded": LeastLoaded,
    "two-choices": TwoChoices,
    "round-robin": RoundRobin,
    "random": Random,
}
