"""The simulation against queueing theory, where that has closed forms.

An estimate may be off by four of its standard errors, which must themselves be small: a wrong model is off by more.
"""

from __future__ import annotations

from math import exp, factorial

import numpy as np
import pytest

from opara_client.capacity_balancing import BALANCERS
from opara_client.capacity_model import ReplicaModel
from opara_client.capacity_simulation import WARM_UP, Outcome, mean_error, simulate
from opara_client.perf_arrivals import NS, Arrivals

REQUESTS = 200_000
ERRORS = 4
SMALL = 0.05  # of the value


def offered(
    model: ReplicaModel, rate: float, replicas: int = 1, balancer: str = "random", *, requests: int = REQUESTS
) -> Outcome:
    return simulate(model, replicas, balancer, Arrivals(rate).due_ns(requests / rate) / NS)


def close(outcome: Outcome, wait_s: float) -> bool:
    error = mean_error(outcome.wait_s)
    assert error < SMALL * wait_s
    return abs(float(outcome.wait_s.mean()) - wait_s) < ERRORS * error


def erlang_c(servers: int, load: float) -> float:
    """The share of requests that wait in M/M/c; ``load``: in servers."""
    all_busy = load**servers / factorial(servers) * servers / (servers - load)
    return all_busy / (sum(load**busy / factorial(busy) for busy in range(servers)) + all_busy)


@pytest.mark.parametrize(("load", "variation"), [(0.3, 0.0), (0.8, 0.0), (0.6, 0.5), (0.8, 0.5), (0.7, 1.0)])
def test_one_row_at_a_time_waits_as_pollaczek_and_khinchine_say(load: float, variation: float) -> None:
    """M/D/1, M/G/1 and M/M/1."""
    model = ReplicaModel({1: 1.0}, variation=variation, queue_rows=10**6)
    expected = load * (1 + variation**2) / (2 * (1 - load))
    outcome = offered(model, load)
    assert close(outcome, expected)
    assert outcome.busy == pytest.approx(load, rel=0.02)
    assert outcome.requests_per_batch == 1


def test_many_replicas_at_random_are_as_many_queues_each_alone() -> None:
    """A Poisson process that is split at random: M/D/1 each."""
    model = ReplicaModel({1: 1.0}, queue_rows=10**6)
    assert close(offered(model, 50 * 0.8, replicas=50), 0.8 / (2 * 0.2))


@pytest.mark.parametrize("rate", [0.3, 1.0, 3.0, 20.0])
def test_batches_of_any_size_wait_for_the_rest_of_the_one_before(rate: float) -> None:
    """Natural batching without a largest batch, each of which takes 1 s: who comes while one runs waits for half of it
    in the mean, and who finds the device idle for nothing. Of one batch to the next those are ``rate`` and, if nobody
    came meanwhile, one."""
    model = ReplicaModel({1: 1.0, 1000: 1.0})
    came_meanwhile, found_it_idle = rate, exp(-rate)
    assert close(offered(model, rate), 0.5 * came_meanwhile / (came_meanwhile + found_it_idle))


def test_the_front_is_a_queue_of_its_own() -> None:
    """M/D/1 before a device that is never busy for long."""
    model = ReplicaModel({1: 1e-9, 10**4: 1e-9}, front_s=1.0, base_s=5.0)
    outcome = offered(model, 0.8)
    before = outcome.latency_s - 5.0 - 1.0
    assert mean_error(before) < SMALL * 2
    assert abs(before.mean() - 0.8 / (2 * 0.2)) < ERRORS * mean_error(before)
    assert outcome.wait_s.max() < 1e-6  # the queue's time begins behind the front


@pytest.mark.parametrize("replicas", [2, 4])
def test_the_least_loaded_are_between_one_queue_for_all_and_chance(replicas: int) -> None:
    """M/M/c, whose requests choose a server as late as can be, and M/M/1 each. Joining the shortest queue has no closed
    form beyond two servers, but a bound on each side."""
    load = 0.75
    model = ReplicaModel({1: 1.0}, variation=1.0, queue_rows=10**6)
    outcome = offered(model, replicas * load, replicas, "least-loaded")
    best = erlang_c(replicas, replicas * load) / (replicas * (1 - load))
    error = mean_error(outcome.wait_s)
    assert error < SMALL * best
    assert best - ERRORS * error < outcome.wait_s.mean() < 0.6 * load / (1 - load)
    assert outcome.wait_s.mean() < offered(model, replicas * load, replicas, "two-choices").wait_s.mean()


def test_one_server_is_m_m_c_with_one_server() -> None:
    """Erlang's formula as it is used above, against the simulation."""
    assert close(offered(ReplicaModel({1: 1.0}, variation=1.0, queue_rows=10**6), 0.7), erlang_c(1, 0.7) / 0.3)


def test_two_choices_among_many_have_the_tails_of_mitzenmacher() -> None:
    """Of infinitely many M/M/1 queues a share of load ** (2 ** k - 1) holds k or more requests (The power of two
    choices in randomized load balancing, IEEE TPDS 2001); so by Little's law a request takes their sum over the load.
    """
    load, replicas = 0.9, 500
    model = ReplicaModel({1: 1.0}, variation=1.0)
    outcome = offered(model, load * replicas, replicas, "two-choices", requests=500_000)
    expected = sum(load ** (2**k - 1) for k in range(1, 12)) / load - 1.0
    error = mean_error(outcome.wait_s)
    assert error < SMALL * expected
    # few are not infinitely many: the difference is of the order of 1 / replicas
    assert abs(outcome.wait_s.mean() - expected) < ERRORS * error + 10 * expected / replicas


def test_a_bounded_queue_refuses_as_m_m_1_k() -> None:
    load, room = 0.9, 5  # of which one runs
    model = ReplicaModel({1: 1.0}, variation=1.0, queue_rows=room - 1)
    outcome = offered(model, load)
    refused = np.isinf(outcome.latency_s).astype(float)
    expected = (1 - load) * load**room / (1 - load ** (room + 1))
    assert mean_error(refused) < SMALL * expected
    assert abs(refused.mean() - expected) < ERRORS * mean_error(refused)
    assert outcome.refused == pytest.approx(refused.mean())


def test_in_turns_constant_times_wait_less_than_at_random() -> None:
    """Every c-th request of a Poisson process comes more evenly than one by chance."""
    model = ReplicaModel({1: 1.0}, queue_rows=10**6)
    turns, chance = (offered(model, 8 * 0.9, 8, balancer).wait_s.mean() for balancer in ("round-robin", "random"))
    assert turns < 0.5 * chance


@pytest.mark.parametrize("balancer", BALANCERS)
def test_every_request_is_answered_once_or_refused(balancer: str) -> None:
    model = ReplicaModel({1: 1.0, 4: 2.0}, front_s=0.1, queue_rows=6, base_s=0.5)
    due_s = Arrivals(10.0, burst=3).due_ns(500) / NS
    outcome = simulate(model, 4, balancer, due_s)
    assert len(outcome.latency_s) == len(due_s) - int(WARM_UP * len(due_s))
    assert 0 < outcome.refused < 1
    answered = outcome.latency_s[np.isfinite(outcome.latency_s)]
    assert len(answered) == len(outcome.wait_s)
    assert answered.min() >= model.lone_s - 1e-9
    assert outcome.wait_s.min() >= -1e-9
    assert outcome.busy <= 1
    assert outcome.latency_s.tolist() == simulate(model, 4, balancer, due_s).latency_s.tolist()


def test_an_idle_device_waits_for_a_fuller_batch_as_long_as_it_is_told() -> None:
    model = ReplicaModel({1: 1.0, 4: 1.0}, delay_s=3.0)
    lone = simulate(model, 1, "random", np.array([10.0, 100.0]), warm_up=0)
    assert lone.latency_s == pytest.approx([4.0, 4.0])
    together = simulate(model, 1, "random", np.array([10.0, 11.0, 12.0, 12.5, 12.6]), warm_up=0)
    assert together.latency_s == pytest.approx([3.5, 2.5, 1.5, 1.0, 4.0])  # four are enough; the fifth waits for others


def test_quantiles_count_those_refused_as_late() -> None:
    outcome = Outcome(np.array([1.0] * 98 + [np.inf] * 2), np.zeros(98), 0.5, 10, 98)
    assert outcome.quantile(0.98) == 1.0
    assert outcome.quantile(0.99) == np.inf
    assert outcome.refused == pytest.approx(0.02)
    assert np.isnan(outcome.quantile_error(0.99))
