from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from opara_client.inputs import InputError
from opara_client.perf_arrivals import Arrivals
from opara_client.perf_histogram import Histogram
from opara_client.perf_load import Closed, Load, Open, Payload, Tally, add
from opara_client.perf_opara import OparaProtocol
from opara_client.perf_plot import plot
from opara_client.perf_report import Report, lines, make_report

MS = 1_000_000


def histogram(*milliseconds: float) -> Histogram:
    result = Histogram()
    for value in milliseconds:
        result.record(round(value * MS))
    return result


def tally(**changes: object) -> Tally:
    """1000 answers in 5 to 14.99 ms, of a generator at ease."""
    values = {
        "latency": histogram(*(5 + number / 100 for number in range(1000))),
        "send_delay": histogram(*1000 * [0.1]),
        "lag": histogram(*100 * [0.1]),
        "answered": 1000,
        "ended": 1000,
        "finished": 1000,
        "cpu_s": 0.1,
        "busiest": 0.1,
    }
    return Tally(**{**values, **changes})  # type: ignore[arg-type]


def report(of: Tally, pace: Closed | Open | None = None) -> Report:
    pace = pace or Open(Arrivals(500), 64)
    return make_report(Load("t", OparaProtocol(), (Payload(b"12345", b""),), pace, 4, 1.0, 2.0, 9.0, None), 2, of)


def test_a_report_of_a_load_at_ease() -> None:
    found = report(tally())
    assert found.warnings == ()
    assert (found.mode, found.rate, found.max_in_flight, found.concurrency) == ("open", 500, 64, None)
    assert found.answers_per_s == 500
    assert found.request_bytes == 5
    assert found.latency_us.percentiles == pytest.approx(
        {"p50": 9990, "p75": 12490, "p90": 13990, "p95": 14490, "p99": 14890, "p99.9": 14980}, rel=0.001
    )
    assert found.latency_us.max == 14990
    assert found.generator.cpu_us_per_request == pytest.approx(100)
    assert found.generator.cores_busy == pytest.approx(0.05 / len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"busiest": 0.9}, "the generator was the limit: an event loop of it was busy 90% of the time"),
        ({"cpu_s": 2.0 * len(os.sched_getaffinity(0))}, "the generator was the limit: it used 100% of the cores that"),
        ({"lag": histogram(0.1, 5)}, "latencies hold delays of the generator: 1 % of its timers were late by 500"),
        (
            {"unsent": 3},
            "3 requests were due and not sent in the time: more than server or generator could take",
        ),
        ({"unsent": 1}, "1 request was due and not sent in the time"),
        ({"held": 30}, "30 requests were held back by --max-in-flight: the server was overloaded"),
        ({"answered": 1}, "p99.9 of 1 answer is their maximum: measure longer"),
        ({"answered": 999}, "p99.9 of 999 answers is their maximum: measure longer"),
    ],
)
def test_warnings(changes: dict[str, object], warning: str) -> None:
    (found,) = report(tally(**changes)).warnings
    assert found.startswith(warning)
    assert any(line.startswith(f"500/s: warning: {warning}") for line in lines([report(tally(**changes))]))


@pytest.mark.parametrize("changes", [{"lag": histogram(0.1, 1.4)}, {"held": 10}, {"busiest": 0.8}])
def test_what_hardly_matters_is_no_warning(changes: dict[str, object]) -> None:
    assert report(tally(**changes)).warnings == ()


def test_tallies_add_up() -> None:
    one = tally(failed=Counter(INTERNAL=2), wrong=Counter(shape=1), unsent=3, held=4, busiest=0.3)
    both = add([one, tally(failed=Counter(INTERNAL=1, UNAVAILABLE=1))])
    assert both.failed == {"INTERNAL": 3, "UNAVAILABLE": 1}
    assert (both.answered, both.sent, both.ended, both.finished) == (2000, 2004, 2000, 2000)
    assert (both.latency.count, both.send_delay.count, both.lag.count) == (2000, 2000, 200)
    assert (both.wrong, both.unsent, both.held) == ({"shape": 1}, 3, 4)
    assert (both.cpu_s, both.busiest) == (0.2, 0.3)


def test_one_of_a_kind_is_no_plural() -> None:
    said = lines([report(tally(wrong=Counter(shape=1)), Closed(1))])
    assert "1 caller: wrong: 1 answer of other shapes" in said


def test_nothing_was_answered(tmp_path: Path) -> None:
    nothing = report(Tally(failed=Counter(UNAVAILABLE=5)), Closed(3))
    said = lines([nothing])
    assert "3 callers: failed: 5 UNAVAILABLE" in said
    assert said[1].split()[7:14] == ["-"] * 7
    plot([nothing], tmp_path / "a.svg")
    assert (tmp_path / "a.svg").exists()


@pytest.mark.parametrize(
    ("name", "message"), [("a.doc", "Format 'doc' is not supported"), ("none/a.svg", "No such file")]
)
def test_a_plot_that_cannot_be_saved(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plot([report(tally())], tmp_path / name)
