"""The soak run, short: it passes on a right server, and its checks see what is wrong."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bench import soak
from opara_protos.v1 import inference_pb2 as pb


def test_a_short_run_accounts_for_every_request(tmp_path: Path) -> None:
    soak.main(requests=2000, lanes=2, device="cpu", processes=2, options="", out=tmp_path)
    report = json.loads((tmp_path / "soak-cpu.json").read_text())
    assert (report["answered"], report["wrong"], report["failed"]) == (2000, 0, {})
    assert report["counted by the server"] == {"OK": 2000}


def test_no_row_is_like_another() -> None:
    rows = Counter(row.tobytes() for request in range(2000) for row in soak.numbers(request))
    assert max(rows.values()) == 1
    assert {len(soak.numbers(request)) for request in range(10)} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(("request_id", "of"), [("7", 8), ("8", 7), ("7", 12)])
def test_an_answer_of_another_is_seen(request_id: str, of: int) -> None:
    tally = soak.Tally()
    values: np.ndarray = soak.numbers(of)
    soak.check(7, pb.InferResponse(id=request_id, outputs=[pb.Tensor(data=values.tobytes())]), tally)
    assert (tally.answered, tally.wrong) == (1, 1)


def test_connections_that_are_about_to_end_are_no_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([{"descriptors": 12.0}, {"descriptors": 11.0}, {"descriptors": 10.0}, {"descriptors": 9.0}])
    assert soak.at_rest(lambda: next(seen), 10.0) == {"descriptors": 10.0}
    monkeypatch.setattr(soak, "PATIENCE_S", 0.0)
    assert soak.at_rest(lambda: {"descriptors": 11.0}, 10.0) == {"descriptors": 11.0}


def test_growth_counts_in_the_second_half() -> None:
    watched = [{"requests": r, "MiB": m} for r, m in ((0, 10.0), (499, 40.0), (500, 50.0), (600, 51.0), (1000, 52.5))]
    assert soak.grown_mib(watched) == 2.5
