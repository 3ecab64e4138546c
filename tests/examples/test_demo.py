"""The demo does what it says, and says what was measured."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from examples import demo
from examples.dataset import training_and_held_out
from examples.serving import ServerError, running_server
from opara_client import Bucket, Candidate

SLOWER = Candidate(
    "opara", 4, 9, predicted_us=80.0, measured_us=125.0, peak_bytes=100, rejected="", compact=False, lowering="aten"
)
BUCKET = Bucket(
    batch_size=8,
    policy="sequential",
    lowering="aten",
    operators=30,
    streams=1,
    synchronisations=0,
    measured_us=100.0,
    sequential_us=100.0,
    peak_bytes=100,
    candidates=(Candidate("sequential", 1, 0, 100.0, 100.0, 100, "", False, "aten"), SLOWER),
    reused=False,
    compact=False,
    steady_bytes=40,
)


def test_the_demo_serves_real_images_and_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main() == 0
    said = capsys.readouterr().out
    for expected in (
        "of 360 held-out images",
        "p50",
        "p99",
        "requests/s",
        "opara",
        "http://",
        "opara_stream_concurrency{",
    ):
        assert expected in said
    assert "the same answers" in said
    assert re.search(r"^metrics +http://[\d.:]+/metrics$", said, re.MULTILINE)
    assert "after 720 rows" in said
    assert 'opara_rows_total{model="digits"} 720.0' in said
    assert said.rstrip().endswith("the server has stopped cleanly")


def test_a_server_that_cannot_start_is_an_error_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no model in it"), running_server(tmp_path):
        pass


@pytest.mark.parametrize(
    ("policy", "opara", "words"),
    [
        ("sequential", SLOWER, "slower: not chosen"),
        ("sequential", replace(SLOWER, measured_us=99.5), "hardly faster: not chosen"),
        ("critical_path", replace(SLOWER, measured_us=90.0), "faster, but another was chosen"),
        ("sequential", replace(SLOWER, rejected="2.5 times the memory"), "refused: 2.5 times the memory"),
        ("sequential", replace(SLOWER, measured_us=0.0, rejected="not measured: no time"), "not measured: no time"),
    ],
)
def test_what_became_of_the_papers_policy(policy: str, opara: Candidate, words: str) -> None:
    assert demo.verdict(replace(BUCKET, policy=policy), opara) == words


def test_the_fastest_accepted_schedule_stands_for_the_policy() -> None:
    faster = replace(SLOWER, streams=2, measured_us=90.0)
    refused = replace(SLOWER, streams=11, measured_us=80.0, rejected="memory")
    assert demo.measured_opara(replace(BUCKET, candidates=(SLOWER, refused, faster))) == faster
    assert demo.measured_opara(replace(BUCKET, candidates=(refused,))) == refused
    assert demo.measured_opara(replace(BUCKET, candidates=())) is None


def test_requests_of_several_images_cover_every_image_in_order() -> None:
    _, held_out = training_and_held_out()
    batches = demo.in_batches(held_out)
    assert {len(batch) for batch in batches[:-1]} == set(demo.BATCHES)
    assert np.array_equal(np.concatenate(batches), held_out.images)


def test_on_a_terminal_the_servers_own_bar_and_words_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with pytest.raises(ServerError, match=r"exit status 1 before it was ready$"), running_server(tmp_path):
            pass
    seen = b""
    with suppress(OSError):  # nobody writes to the terminal any more
        while part := os.read(master, 4096):
            seen += part
    os.close(master)
    assert b"starting" in seen
    assert b"opara-server: " in seen
