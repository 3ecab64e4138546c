"""Our counters and histograms are exposed as prometheus_client exposes its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from opara_server.observe.tallies import CountFamily, DistributionFamily

BOUNDS = (0.001, 0.5, 1.0, 2.5)
VALUES = st.floats(0, 10) | st.sampled_from(BOUNDS)


@given(st.dictionaries(st.sampled_from(["a", 'b"\n']), st.lists(VALUES, max_size=10), max_size=2))
def test_as_prometheus_client_would(values: dict[str, list[float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    seconds = DistributionFamily("seconds", "How long.", ["model"], BOUNDS, ours)
    things = CountFamily("things_total", "How many.", ["model"], ours)
    their_seconds = Histogram("seconds", "How long.", ["model"], buckets=BOUNDS, registry=theirs)
    their_things = Counter("things_total", "How many.", ["model"], registry=theirs)
    for model, observed in values.items():
        half = len(observed) // 2
        for value in observed[:half]:
            seconds.labels(model).observe(value)
        seconds.labels(model).observe_all(observed[half:])
        things.labels(model).value += len(observed)
        their_latency = their_seconds.labels(model)
        for value in observed:
            their_latency.observe(value)
        their_things.labels(model).inc(len(observed))
    assert parsed(ours) == parsed(theirs)


def parsed(registry: CollectorRegistry) -> list[str]:
    """Lines of text but for the times of creation, sums to nine digits: they are added up in another order."""
    lines = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
    return [f"{line.rpartition(' ')[0]} {float(line.split()[-1]):.9g}" if "_sum" in line else line for line in lines]
