"""First and second start of a real server, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

from bench.warm_start import main


def test_the_second_start_takes_the_saved_plan(tmp_path: Path) -> None:
    main("deepfm", "float32", [1, 2], "cpu", tuning_budget_s=1.0, again=1, results=tmp_path)
    report = json.loads((tmp_path / "warm_start-deepfm.json").read_text())
    assert [start["searched"] for start in report["starts"]] == [True, False]
    assert all(start["seconds"] > 0 for start in report["starts"])
    assert report["batches"] == [1, 2]
