"""From a load and an objective to replicas, by simulation: how many, with head-room for what is lost or replaced."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from opara_client.capacity_model import ReplicaModel
from opara_client.capacity_simulation import Outcome, mean_error, simulate
from opara_client.inputs import InputError
from opara_client.perf_arrivals import NS, Arrivals
from opara_client.wording import counted

LEAST_REQUESTS = 100_000  # of a simulation
PER_REPLICA = 1000  # near its capacity it takes some 200 until they are as they will stay
TAIL = 1000  # requests beyond the percentile
ERRORS = 2  # standard errors between the estimate and the objective
PRECISION = 0.01  # of the highest load
FAR = 16  # times what the load and a burst take: further replicas change nothing


@dataclass(frozen=True, slots=True)
class Objective:
    """``share`` of the requests, as 0.99, answered within ``latency_s``."""

    share: float
    latency_s: float

    def met(self, outcome: Outcome) -> bool:
        """With some certainty."""
        return outcome.quantile(self.share) + ERRORS * outcome.quantile_error(self.share) <= self.latency_s


@dataclass(frozen=True, slots=True)
class Offered:
    """Requests a second, in bursts of ``burst``, which come at random; spread by ``balancer``, of BALANCERS."""

    rate: float
    burst: int = 1
    balancer: str = "two-choices"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Need:
    """``replicas``: that meet the objective, all of them there; the fewest. The other counts: still as many when a
    replica is lost (or replaced without another before it), a zone, a zone in the midst of that. Times in seconds.

    ``quantile_s``: latency at the objective's percentile, with its standard error. ``queue_s``: mean wait for a batch,
    likewise. ``most_per_s``: the highest load at which so many meet the objective. ``target_s``: mean wait at that
    load over the growth that is to be met: what to scale by.
    """

    rate: float
    replicas: int
    replica_lost: int
    zone_lost: int
    zone_lost_in_update: int
    median_s: float
    quantile_s: float
    quantile_error_s: float
    queue_s: float
    queue_error_s: float
    requests_per_batch: float
    most_per_s: float
    target_s: float


def plan(model: ReplicaModel, offered: Offered, objective: Objective, zones: int, growth: float) -> Need:
    """``growth``: by which factor the load may grow before further replicas serve. Raises InputError where no number
    of replicas meets the objective."""
    replicas = fewest(model, offered, objective)
    outcome = offer(model, replicas, offered, objective.share)
    most = highest(model, replicas, offered, objective)
    scaled = offer(model, replicas, replace(offered, rate=most / growth), objective.share)
    return Need(
        rate=offered.rate,
        replicas=replicas,
        replica_lost=replicas + 1,
        zone_lost=in_zones(replicas, zones),
        zone_lost_in_update=in_zones(replicas + 1, zones),
        median_s=outcome.quantile(0.5),
        quantile_s=outcome.quantile(objective.share),
        quantile_error_s=outcome.quantile_error(objective.share),
        queue_s=float(outcome.wait_s.mean()),
        queue_error_s=mean_error(outcome.wait_s),
        requests_per_batch=outcome.requests_per_batch,
        most_per_s=most,
        target_s=float(scaled.wait_s.mean()),
    )


def fewest(model: ReplicaModel, offered: Offered, objective: Objective) -> int:
    """Replicas that meet the objective. Raises InputError where none do."""
    if model.lone_s > objective.latency_s:
        raise InputError(
            f"no number of replicas answers within {1e3 * objective.latency_s:g} ms: "
            f"a request that meets no other takes {1e3 * model.lone_s:.2f} ms"
        )
    below = int(offered.rate / model.requests_per_s)  # would never catch up
    step = 1
    while not meets(model, below + step, offered, objective):
        if step > FAR * (below + offered.burst):
            raise InputError(
                f"{counted(below + step, 'replica')} would not meet the objective: bursts alone are too large"
            )
        step *= 2
    least, enough = below + step // 2, below + step
    while enough - least > 1:
        middle = (least + enough) // 2
        least, enough = (least, middle) if meets(model, middle, offered, objective) else (middle, enough)
    return enough


def highest(model: ReplicaModel, replicas: int, offered: Offered, objective: Objective) -> float:
    """Requests a second at which ``replicas`` meet the objective, as they do at what is offered."""
    least, most = offered.rate, max(offered.rate, replicas * model.requests_per_s)
    while most - least > PRECISION * most:
        middle = (least + most) / 2
        if meets(model, replicas, replace(offered, rate=middle), objective):
            least = middle
        else:
            most = middle
    return least


def meets(model: ReplicaModel, replicas: int, offered: Offered, objective: Objective) -> bool:
    return objective.met(offer(model, replicas, offered, objective.share))


def offer(model: ReplicaModel, replicas: int, offered: Offered, share: float) -> Outcome:
    """With as many requests as a percentile of ``share`` takes to be known."""
    arrivals = Arrivals(offered.rate, offered.burst, seed=offered.seed)
    due_s = arrivals.due_ns(requests(replicas, share) / offered.rate) / NS
    return simulate(model, replicas, offered.balancer, due_s, offered.seed)


def requests(replicas: int, share: float) -> int:
    """For a simulation of so many replicas: enough beyond the percentile, and for each replica."""
    return max(LEAST_REQUESTS, PER_REPLICA * replicas, ceil(TAIL / (1 - share)))


def in_zones(replicas: int, zones: int) -> int:
    """How many, spread evenly, leave ``replicas`` when the zone with the most of them is lost."""
    count = replicas + 1
    while count - ceil(count / zones) < replicas:
        count += 1
    return count
