from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opara_client.capacity_balancing import LeastLoaded, Random, RoundRobin, TwoChoices


def test_in_turns() -> None:
    balancer = RoundRobin(3, np.random.default_rng(0))
    assert [balancer.pick() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_at_random_all_come_equally_often() -> None:
    balancer = Random(4, np.random.default_rng(0))
    counts = Counter(balancer.pick() for _ in range(100_000))
    assert sorted(counts) == [0, 1, 2, 3]
    assert all(abs(count - 25_000) < 4 * (100_000 * 3 / 16) ** 0.5 for count in counts.values())


@given(st.integers(1, 6), st.lists(st.integers(0, 5), max_size=200))
def test_the_least_loaded_has_the_fewest_in_flight(replicas: int, moves: list[int]) -> None:
    """A move of 0 begins a request, another one ends one where there is one."""
    balancer, in_flight = LeastLoaded(replicas, np.random.default_rng(0)), [0] * replicas
    for move in moves:
        if move == 0 or not in_flight[move % replicas]:
            chosen = balancer.pick()
            assert in_flight[chosen] == min(in_flight)
            in_flight[chosen] += 1
        else:
            balancer.ended(move % replicas)
            in_flight[move % replicas] -= 1


def test_of_two_the_less_busy_is_chosen_and_both_may_be_the_same() -> None:
    """As Envoy: drawn with replacement, so the busiest of two still gets a quarter."""
    balancer = TwoChoices(2, np.random.default_rng(0))
    busy = balancer.pick()
    counts: Counter[int] = Counter()
    for _ in range(10_000):
        chosen = balancer.pick()
        counts[chosen] += 1
        balancer.ended(chosen)
    assert counts[busy] == pytest.approx(2500, abs=4 * (10_000 * 3 / 16) ** 0.5)
