"""What the host drives has the host's time alone; graphs have both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.assessing import assess, time_all
from bench.background import Background
from bench.cells import CellKey
from bench.preparing import Ready
from bench.reference import reference
from bench.subject import Subject, opened_subject
from bench.systems import SYSTEMS
from bench.systems.runners import Called
from bench.systems.system import Prepared
from tests.bench.tiny import BRANCHES


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with opened_subject(CellKey("tiny", "float32", 2), BRANCHES, "cpu", 0.01, 0.5) as opened:
        yield opened


def ready(subject: Subject, *names: str) -> dict[str, Ready]:
    return {name: Ready(SYSTEMS[name], Prepared(Called(subject.flat, subject.inputs)), 0.0, 0) for name in names}


def test_the_time_that_counts_goes_by_who_drives(subject: Subject) -> None:
    systems = ready(subject, "eager", "sequential")
    times = time_all(subject, systems)
    assert times["eager"].device is None
    assert times["eager"].counts == times["eager"].host
    assert times["sequential"].device
    assert times["sequential"].counts == times["sequential"].device
    results = assess(subject, systems.values(), times, reference(subject), 0.0)
    eager, graph = results["eager"], results["sequential"]
    assert (eager.median_us, eager.host_us) == (None, times["eager"].host.median_us)
    assert eager.spread == times["eager"].host.spread
    assert (graph.median_us, graph.spread) == (times["sequential"].device.median_us, times["sequential"].device.spread)
    assert graph.host_us == times["sequential"].host.median_us


def test_nothing_takes_no_time(subject: Subject) -> None:
    assert time_all(subject, {}) == {}
    assert set(time_all(subject, ready(subject, "eager"))) == {"eager"}


def test_ours_keeps_what_it_chose_from(subject: Subject) -> None:
    compiling = SYSTEMS["ours"].compile(subject)
    assert isinstance(compiling, Background)
    one = Ready(SYSTEMS["ours"], compiling.finish(), 0.0, 0)
    (result,) = assess(subject, [one], time_all(subject, {"ours": one}), reference(subject), 0.0).values()
    assert {candidate.policy for candidate in result.candidates} >= {"sequential", result.policy}
    (sequential,) = [c for c in result.candidates if (c.lowering, c.policy) == ("aten", "sequential")]
    assert result.one_stream_us == sequential.measured_us
