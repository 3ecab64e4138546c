from __future__ import annotations

import numpy as np
import pytest

from opara_client.perf_arrivals import Arrivals, Spacing


def test_constant_spacing() -> None:
    assert Arrivals(100, spacing=Spacing.CONSTANT).due_ns(0.05).tolist() == [0, 10**7, 2 * 10**7, 3 * 10**7, 4 * 10**7]


@pytest.mark.parametrize("burst", [1, 20])
def test_poisson_spacing_has_the_rate_and_exponential_gaps(burst: int) -> None:
    due = Arrivals(10_000, burst).due_ns(20) / 1e9
    assert len(due) == pytest.approx(200_000, rel=0.05)
    assert due[0] >= 0
    assert due[-1] < 20
    gaps = np.diff(due[::burst])
    assert gaps.min() >= 0
    # Of an exponential distribution, standard deviation and mean are one, and so is ln 2 times the mean the median.
    assert gaps.mean() == pytest.approx(burst / 10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)
    assert np.median(gaps) == pytest.approx(np.log(2) * gaps.mean(), rel=0.1)


def test_the_requests_of_a_burst_are_due_at_once() -> None:
    due = Arrivals(1000, burst=4).due_ns(1)
    assert len(due) % 4 == 0
    assert (due.reshape(-1, 4) == due[::4, None]).all()
    assert len(np.unique(due)) == len(due) // 4


def test_the_seed_decides() -> None:
    first, again, other = (Arrivals(100, seed=seed).due_ns(1).tolist() for seed in (1, 1, 2))
    assert first == again != other
