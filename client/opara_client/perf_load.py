"""What is sent, how fast and for how long; and what came of it. Plain data: it travels between processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from opara_client.perf_arrivals import Arrivals
from opara_client.perf_histogram import Histogram, merged
from opara_client.perf_protocol import Protocol
from opara_client.security import Bearer, Tls


@dataclass(frozen=True, slots=True)
class Payload:
    """A serialized request, and the first answer to it, with which others are compared."""

    request: bytes
    answer: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """``concurrency`` callers, each of which sends its next request when its last is answered."""

    concurrency: int


@dataclass(frozen=True, slots=True)
class Open:
    """Requests are sent when they are due, however many are unanswered, up to ``max_in_flight``."""

    arrivals: Arrivals
    max_in_flight: int


@dataclass(frozen=True, slots=True)
class Load:
    """``pace``: of all processes together. ``connections``: of each process, at most. ``timeout_s``: of each request.

    ``tolerance``: see ``perf_answers.fault``. ``tls``: None for plain text. ``bearer``: the token of every call.
    """

    target: str
    protocol: Protocol
    payloads: tuple[Payload, ...]
    pace: Closed | Open
    connections: int
    warm_up_s: float
    duration_s: float
    timeout_s: float
    tolerance: float | None
    tls: Tls | None = None
    bearer: Bearer = field(default_factory=Bearer)


@dataclass(frozen=True, slots=True)
class Share:
    """Process number ``index`` of ``processes``: it is or sends every ``processes``-th caller or request."""

    index: int
    processes: int

    def of(self, total: int) -> int:
        """How many of ``total`` are its own."""
        return len(range(self.index, total, self.processes))


@dataclass(slots=True)
class Tally:
    """What came of the requests that were due after the warm-up.

    ``latency``: from due to answered, of those ``answered`` OK. ``send_delay``: from due to sent, of all that were
    sent. ``failed``: by status code. ``wrong``: answered OK, but not right; by what is wrong. ``unsent``: due, but not
    sent in the time. ``held``: sent late because of ``max_in_flight``. ``ended``, ``finished``: of whatever request,
    during the measurement, answers of any kind and OK answers. ``lag``: how late the event loop's timers were.
    ``cpu_s``: processor time during the measurement. ``busiest``: the largest share of it in which one process's event
    loop had something to do.
    """

    latency: Histogram = field(default_factory=Histogram)
    send_delay: Histogram = field(default_factory=Histogram)
    lag: Histogram = field(default_factory=Histogram)
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    unsent: int = 0
    held: int = 0
    ended: int = 0
    finished: int = 0
    cpu_s: float = 0.0
    busiest: float = 0.0

    @property
    def sent(self) -> int:
        return self.answered + self.failed.total()


def add(tallies: Sequence[Tally]) -> Tally:
    """The tally of all processes."""
    return Tally(
        latency=merged(tally.latency for tally in tallies),
        send_delay=merged(tally.send_delay for tally in tallies),
        lag=merged(tally.lag for tally in tallies),
        answered=sum(tally.answered for tally in tallies),
        failed=sum((tally.failed for tally in tallies), Counter[str]()),
        wrong=sum((tally.wrong for tally in tallies), Counter[str]()),
        unsent=sum(tally.unsent for tally in tallies),
        held=sum(tally.held for tally in tallies),
        ended=sum(tally.ended for tally in tallies),
        finished=sum(tally.finished for tally in tallies),
        cpu_s=sum(tally.cpu_s for tally in tallies),
        busiest=max((tally.busiest for tally in tallies), default=0.0),
    )
