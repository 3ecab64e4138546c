"""The engine's shortlist, held against the committed records of measured schedules."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from bench.prediction import RANDOM, Record, load
from opara_server.engine.contenders import Contender, shortlist
from opara_server.engine.program import Program
from opara_server.engine.simulate import Latency

RECORDS = sorted((Path(__file__).parents[2] / "bench" / "data" / "schedules").glob("*.json.gz"))


def loss(record: Record) -> float:
    """How much longer the best of the shortlist takes than the best of all policies."""
    program = cast(Program, SimpleNamespace(graph=record.graph))  # nothing else of it is asked
    policies = [m for m in record.measured if m.schedule.policy != RANDOM]
    entrants = [Contender(program, record.profile, m.schedule, compact=False) for m in policies]
    times = {entrant.key: m.median_us for entrant, m in zip(entrants, policies, strict=True)}
    return min(times[entrant.key] for entrant in shortlist(entrants, Latency())) / min(times.values()) - 1


@pytest.fixture(scope="module")
def losses() -> dict[str, float]:
    return {path.name: loss(load(path)) for path in RECORDS}


def test_the_shortlist_holds_the_best_policy_or_one_as_good(losses: dict[str, float]) -> None:
    assert losses
    assert sum(lost == 0 for lost in losses.values()) >= 0.75 * len(losses)
    assert max(losses.values()) < 0.02, "which is as fast, by select.AS_FAST"
