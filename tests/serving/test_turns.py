"""Fair shares of one device, by themselves: the test says how long each batch took."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opara_server.serving.turns import InFlight, Share, Turns


class Model:
    def __init__(self, turns: Turns, weight: float, batches: Sequence[float]) -> None:
        self.weight, self.share, self._turns = weight, Share(weight), turns
        self.ran: list[float] = []
        self._batches = batches
        turns.rest(self.share)

    def run(self) -> float:
        self._turns.begin(self.share)
        seconds = self._batches[len(self.ran) % len(self._batches)]
        self.share.used(seconds)
        self.ran.append(seconds)
        return seconds


def next_of(models: Sequence[Model]) -> Model:
    return min(models, key=lambda model: model.share.start)


WEIGHTS = st.floats(0.1, 10.0)
BATCHES = st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=5)


@given(st.lists(st.tuples(WEIGHTS, BATCHES), min_size=2, max_size=5), st.integers(0, 200))
def test_busy_models_never_part_by_more_than_one_batch_of_each(
    described: list[tuple[float, list[float]]], rounds: int
) -> None:
    """The bound of the paper, theorem 1: over the time in which both have work, W_f / w_f and W_g / w_g differ by at
    most l_f / w_f + l_g / w_g."""
    turns = Turns()
    models = [Model(turns, weight, batches) for weight, batches in described]
    for _ in range(rounds):
        next_of(models).run()
        for f in models:
            for g in models:
                apart = sum(f.ran) / f.weight - sum(g.ran) / g.weight
                longest = max(f.ran, default=0) / f.weight + max(g.ran, default=0) / g.weight
                assert apart <= longest + 1e-9


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_a_slow_model_does_not_starve_a_fast_one(weight: float) -> None:
    turns = Turns()
    slow, fast = Model(turns, 1.0, [0.1]), Model(turns, weight, [0.001])
    spent = 0.0
    while spent < 10:
        spent += next_of([slow, fast]).run()
    assert sum(fast.ran) / sum(slow.ran) == pytest.approx(weight, rel=0.1)


def test_an_idle_model_gains_no_credit() -> None:
    turns = Turns()
    busy, idle = Model(turns, 1.0, [0.01]), Model(turns, 1.0, [0.01])
    for _ in range(1000):
        turns.rest(idle.share)
        busy.run()
    for _ in range(100):
        next_of([busy, idle]).run()
    assert len(idle.ran) == pytest.approx(50, abs=1)


def test_nor_does_it_pay_for_what_it_had_while_others_were_idle() -> None:
    turns = Turns()
    alone, late = Model(turns, 1.0, [0.01]), Model(turns, 1.0, [0.01])
    for _ in range(1000):
        alone.run()
        turns.rest(late.share)
    for _ in range(100):
        next_of([late, alone]).run()
    assert len(alone.ran) == pytest.approx(1050, abs=1)


def test_batches_in_flight_follow_each_other() -> None:
    device = InFlight()
    device.add(10.0, 2.0)
    device.add(11.0, 2.0)
    assert device.until == 14.0
    device.add(20.0, 1.0)
    assert device.until == 21.0
