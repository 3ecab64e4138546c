"""An open loop of requests through a balancer onto replicas, event by event: their latencies, and who was refused.

Of each replica: a thread takes its calls one after the other, they wait in one queue, and whenever the device is idle
it takes what waits as a batch. Everything that happens in between is in the model's ``base_s``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

from opara_client.capacity_balancing import BALANCERS, DRAWN, Balancer
from opara_client.capacity_model import ReplicaModel

WARM_UP = 0.2  # of the requests, which find replicas emptier than they will be
BLOCKS = 20
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """Of the requests after the warm-up, in the order in which they came; times in seconds.

    ``latency_s``: infinite for those refused because a queue was full: they are late for any objective. ``wait_s``: of
    those answered, from when a replica's queue had it to its batch. ``busy``: the share of the time in which devices
    ran batches. ``batches``: and ``answered`` of the whole run.
    """

    latency_s: Floats
    wait_s: Floats
    busy: float
    batches: int
    answered: int

    @property
    def refused(self) -> float:
        """As a share."""
        return 1 - len(self.wait_s) / len(self.latency_s)

    @property
    def requests_per_batch(self) -> float:
        return self.answered / self.batches

    def quantile(self, share: float) -> float:
        """Nearest rank; infinite where more are refused than may be late."""
        return float(np.quantile(self.latency_s, share, method="inverted_cdf"))

    def quantile_error(self, share: float) -> float:
        """Standard error of that, by blocks of requests that came one after the other; nan where a block has no such
        quantile."""
        blocks = [np.quantile(block, share, method="inverted_cdf") for block in np.array_split(self.latency_s, BLOCKS)]
        return float(np.std(blocks, ddof=1) / BLOCKS**0.5) if np.isfinite(blocks).all() else float("nan")


def mean_error(values: Floats) -> float:
    """Standard error of the mean of values that depend on those before, by blocks."""
    return float(np.std([block.mean() for block in np.array_split(values, BLOCKS)], ddof=1) / BLOCKS**0.5)


def simulate(
    model: ReplicaModel, replicas: int, balancer: str, due_s: Floats, seed: int = 0, *, warm_up: float = WARM_UP
) -> Outcome:
    """``replicas`` alike, behind one balancer of BALANCERS; ``due_s``: when each request is sent, ascending;
    ``warm_up``: the share of them that is not told of."""
    random = np.random.default_rng(seed)
    run = _Run(model, replicas, BALANCERS[balancer](replicas, random), len(due_s), random)
    run.serve(due_s.tolist())
    warm = int(warm_up * len(due_s))
    latency, entered = np.array(run.ended)[warm:] - due_s[warm:] + model.base_s, np.array(run.entered)[warm:]
    wait = (np.array(run.taken)[warm:] - entered)[np.isfinite(latency)]
    spent = replicas * max(run.last, float(due_s[-1]))
    return Outcome(latency, wait, run.busy_s / spent, run.batches, int(np.isfinite(run.ended).sum()))


class _Run:
    """State by lifetime: a replica's by its number, a request's by its own; an event is (when, number, replica, whether
    its batch ends), else it looks whether to begin one."""

    def __init__(
        self, model: ReplicaModel, replicas: int, balancer: Balancer, requests: int, random: np.random.Generator
    ) -> None:
        self._batches, self._full = model.batches, len(model.batches)
        self._front_s, self._delay_s, self._room = model.front_s, model.delay_s, model.queue_requests
        self._variation, self._random = model.variation, random
        self._factors: list[float] = []
        self._balancer = balancer
        self._events: list[tuple[float, int, int, bool]] = []
        self._numbers = 0
        self._front = [0.0] * replicas  # until when its thread has calls to take
        self._waiting: list[deque[int]] = [deque() for _ in range(replicas)]
        self._running: list[Sequence[int]] = [()] * replicas
        self.entered = [0.0] * requests
        self.taken = [0.0] * requests
        self.ended = [float("inf")] * requests
        self.last = self.busy_s = 0.0
        self.batches = 0

    def serve(self, due_s: Sequence[float]) -> None:
        events, pick = self._events, self._balancer.pick
        for request, due in enumerate(due_s):
            while events and events[0][0] <= due:
                self._event(*heappop(events))
            self._arrive(request, due, pick())
        while events:
            self._event(*heappop(events))

    def _arrive(self, request: int, now: float, replica: int) -> None:
        waiting = self._waiting[replica]
        begin = self._front[replica]
        entered = self._front[replica] = (begin if begin > now else now) + self._front_s
        if len(waiting) >= self._room:
            self._balancer.ended(replica)
            return
        self.entered[request] = entered
        waiting.append(request)
        if not self._running[replica]:
            self._push(entered, replica, ends=False)

    def _event(self, now: float, _number: int, replica: int, ends: bool) -> None:
        running = self._running[replica]
        if ends:
            ended, leave = self.ended, self._balancer.ended
            for request in running:
                ended[request] = now
                leave(replica)
            self.last = now
            self._running[replica] = ()
        elif running:
            return
        if self._waiting[replica]:
            self._begin(now, replica)

    def _begin(self, now: float, replica: int) -> None:
        """A batch, or a look at when there may be one."""
        waiting, entered = self._waiting[replica], self.entered
        count = 0
        for request in waiting:
            if count == self._full or entered[request] > now:
                break
            count += 1
        first = entered[waiting[0]]
        if not count:
            self._push(first, replica, ends=False)
            return
        if count < self._full and now < first + self._delay_s:
            self._push(first + self._delay_s, replica, ends=False)
            return
        taken, seconds = self._batches[count - 1]
        if self._variation:
            seconds *= self._factor()
        self._running[replica] = batch = [waiting.popleft() for _ in range(taken)]
        for request in batch:
            self.taken[request] = now
        self.busy_s += seconds
        self.batches += 1
        self._push(now + seconds, replica, ends=True)

    def _push(self, when: float, replica: int, *, ends: bool) -> None:
        self._numbers += 1
        heappush(self._events, (when, self._numbers, replica, ends))

    def _factor(self) -> float:
        """Of a gamma distribution of mean 1: exponential for a variation of 1."""
        if not self._factors:
            shape = 1 / self._variation**2
            self._factors = self._random.gamma(shape, 1 / shape, DRAWN).tolist()
        return self._factors.pop()
